-- Whose device it is: who signed in on it first. A device belongs to one user.
-- grain: device_id
-- owner: data-platform
SELECT
    device_id,
    FIRST_VALUE(uid ORDER BY linked, uid) AS user_id,
    MIN(linked) AS linked_at   -- the first sign-in
FROM raw.identities
WHERE linked IS NOT NULL
GROUP BY device_id

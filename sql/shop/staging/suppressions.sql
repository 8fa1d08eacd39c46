-- Who must not be processed at all: erasure requests and complaints.
-- grain: user_id
-- owner: privacy
SELECT
    uid AS user_id,
    MIN(COALESCE(NULLIF(TRIM(reason), ''), 'not given')) AS reason,
    MIN(since) AS effective_at
FROM raw.suppressions
GROUP BY uid

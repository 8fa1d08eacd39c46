-- Registered users as of the end of the day.
-- grain: user_id
-- owner: growth-analytics
-- daily: users
SELECT
    uid AS user_id,
    registered AS registered_at,
    NULLIF(TRIM(region), '') AS region   -- province; NULL = not given
FROM raw.users

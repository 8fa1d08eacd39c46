-- Registered users as of the end of the day.
-- grain: user_id
-- owner: growth-analytics
-- daily: users
WITH numbered AS (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY uid ORDER BY registered, region) AS delivery
    FROM raw.users
)
SELECT
    uid AS user_id,
    registered AS registered_at,
    NULLIF(TRIM(region), '') AS region   -- province; NULL = not given
FROM numbered
WHERE delivery = 1

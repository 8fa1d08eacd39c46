-- The last 20 things a user searched for in 30 days, oldest first.
-- grain: user_id
-- owner: search
-- window: 30 days
SELECT
    user_id,
    ARRAY_SLICE(ARRAY_AGG(LOWER(TRIM(query)) ORDER BY occurred_at, event_id), -20, -1) AS queries  -- terms, most recent last
FROM events
WHERE event_type = 'search' AND TRIM(query) <> '' AND occurred_at >= $as_of - INTERVAL '30 days'
GROUP BY user_id

-- The last 50 items a user touched in 30 days and their categories, oldest first.
-- grain: user_id
-- owner: growth-analytics
-- window: 30 days
SELECT
    user_id,
    ARRAY_SLICE(ARRAY_AGG(item_id ORDER BY occurred_at, event_id), -50, -1) AS items,           -- item ids, most recent last
    ARRAY_SLICE(ARRAY_AGG(category_id ORDER BY occurred_at, event_id), -50, -1) AS categories   -- of the same events; NULL = item of no category
FROM events
WHERE event_type <> 'search' AND item_id IS NOT NULL AND occurred_at >= $as_of - INTERVAL '30 days'
GROUP BY user_id

-- How popular an item was in the last 7 days.
-- grain: item_id
-- owner: merchandising
-- window: 7 days
SELECT
    item_id,
    COUNT(*) AS n_events_7d,                                            -- count
    COUNT(DISTINCT user_id) AS n_users_7d,                              -- count
    COUNT(*) FILTER (WHERE event_type = 'purchase') AS n_purchases_7d   -- count
FROM events
WHERE item_id IS NOT NULL AND occurred_at >= $as_of - INTERVAL '7 days'
GROUP BY item_id

-- How long ago a user was last seen in 30 days, by kind of event.
-- grain: user_id
-- owner: growth-analytics
-- window: 30 days
SELECT
    user_id,
    DATE_PART('epoch', $as_of - MAX(occurred_at)) / 3600.0 AS hours_since_event,                                            -- hours
    DATE_PART('epoch', $as_of - MAX(occurred_at) FILTER (WHERE event_type = 'search')) / 3600.0 AS hours_since_search,      -- hours; NULL = not in 30 days
    DATE_PART('epoch', $as_of - MAX(occurred_at) FILTER (WHERE event_type = 'cart')) / 3600.0 AS hours_since_cart,          -- hours; NULL = not in 30 days
    DATE_PART('epoch', $as_of - MAX(occurred_at) FILTER (WHERE event_type = 'purchase')) / 3600.0 AS hours_since_purchase   -- hours; NULL = not in 30 days
FROM events
WHERE occurred_at >= $as_of - INTERVAL '30 days'
GROUP BY user_id

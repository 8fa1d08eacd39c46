-- How long ago a user was last seen, by kind of event, in the logs the night reads.
-- grain: user_id
-- owner: growth-analytics
SELECT
    user_id,
    DATE_PART('epoch', $as_of - MAX(occurred_at)) / 3600.0 AS hours_since_event,                                            -- hours
    DATE_PART('epoch', $as_of - MAX(occurred_at) FILTER (WHERE event_type = 'search')) / 3600.0 AS hours_since_search,      -- hours; NULL = never
    DATE_PART('epoch', $as_of - MAX(occurred_at) FILTER (WHERE event_type = 'cart')) / 3600.0 AS hours_since_cart,          -- hours; NULL = never
    DATE_PART('epoch', $as_of - MAX(occurred_at) FILTER (WHERE event_type = 'purchase')) / 3600.0 AS hours_since_purchase   -- hours; NULL = never
FROM events
GROUP BY user_id

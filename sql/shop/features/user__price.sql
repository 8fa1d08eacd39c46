-- How dear the items are that a user looks at and buys, within their categories, in 30 days.
-- grain: user_id
-- owner: merchandising
-- window: 30 days
-- range: price_level_30d = 0 .. 1
SELECT
    events.user_id,
    -- Decimals: the same in any order of summation.
    CAST(SUM(CAST(item__price.price_level AS DECIMAL(18, 6))) + 1 AS DOUBLE) / (COUNT(*) + 2.0) AS price_level_30d  -- smoothed towards the middle with the weight of 2 events
FROM events
JOIN item__price ON item__price.item_id = events.item_id
WHERE events.occurred_at >= $as_of - INTERVAL '30 days'
GROUP BY events.user_id

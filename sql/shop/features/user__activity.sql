-- How much a user did in the last 30 days, by kind of event.
-- grain: user_id
-- owner: growth-analytics
-- window: 30 days
WITH recent AS (
    SELECT event_id, user_id, event_type, category_id, platform, price, occurred_at
    FROM events
    WHERE occurred_at >= $as_of - INTERVAL '30 days'
)
SELECT
    user_id,
    COUNT(*) FILTER (WHERE event_type = 'view') AS n_views_30d,                         -- count
    COUNT(*) FILTER (WHERE event_type = 'click') AS n_clicks_30d,                       -- count
    COUNT(*) FILTER (WHERE event_type = 'search') AS n_searches_30d,                    -- count
    COUNT(*) FILTER (WHERE event_type = 'cart') AS n_carts_30d,                         -- count
    COUNT(*) FILTER (WHERE event_type = 'purchase') AS n_purchases_30d,                 -- count
    COUNT(*) FILTER (WHERE occurred_at >= $as_of - INTERVAL '1 day') AS n_events_1d,    -- count
    COUNT(*) FILTER (WHERE occurred_at >= $as_of - INTERVAL '7 days') AS n_events_7d,   -- count
    COUNT(DISTINCT category_id) AS n_categories_30d,                                    -- count
    COUNT(DISTINCT platform) AS n_platforms_30d,                                        -- count
    -- Decimals: the same in any order of summation. TRY_CAST: an absurd price is no price.
    AVG(TRY_CAST(price AS DECIMAL(18, 2))) FILTER (WHERE event_type IN ('view', 'click')) AS price_viewed_30d,  -- shop currency; NULL = viewed nothing priced
    FIRST_VALUE(platform ORDER BY occurred_at, event_id) FILTER (WHERE platform IS NOT NULL) AS platform_first_30d  -- name; NULL = never known
FROM recent
GROUP BY user_id

-- What a user showed of interest in a category in 30 days: what they touched, and what their searches lead to.
-- grain: user_id, category_id
-- owner: growth-analytics
-- window: 30 days
WITH touched AS (
    SELECT
        user_id,
        category_id,
        COUNT(*) FILTER (WHERE event_type = 'view') AS n_views,
        COUNT(*) FILTER (WHERE event_type = 'click') AS n_clicks,
        COUNT(*) FILTER (WHERE event_type IN ('cart', 'purchase')) AS n_buys,
        COUNT(*) FILTER (WHERE occurred_at >= $as_of - INTERVAL '7 days') AS n_events_7d,
        MAX(occurred_at) AS last_at
    FROM events
    WHERE category_id IS NOT NULL AND occurred_at >= $as_of - INTERVAL '30 days'
    GROUP BY user_id, category_id
),
searches AS (
    SELECT user_id, LOWER(TRIM(query)) AS term, COUNT(*) AS n_searches, MAX(occurred_at) AS last_at
    FROM events
    WHERE event_type = 'search' AND occurred_at >= $as_of - INTERVAL '30 days'
    GROUP BY user_id, LOWER(TRIM(query))
),
searched AS (
    SELECT
        searches.user_id,
        lookup.category_id,
        -- Decimals: the same in any order of summation. Shares are rounded to millionths.
        SUM(searches.n_searches * CAST(lookup.share_30d AS DECIMAL(18, 6))) AS n_searches,
        SUM(CAST(lookup.share_30d AS DECIMAL(18, 6))) AS n_terms,
        MAX(searches.last_at) AS last_at
    FROM searches
    JOIN term_category__lookup AS lookup ON lookup.term = searches.term
    GROUP BY searches.user_id, lookup.category_id
)
SELECT
    COALESCE(touched.user_id, searched.user_id) AS user_id,
    COALESCE(touched.category_id, searched.category_id) AS category_id,
    COALESCE(touched.n_views, 0) AS n_views_30d,                                                         -- count
    COALESCE(touched.n_clicks, 0) AS n_clicks_30d,                                                       -- count
    COALESCE(touched.n_buys, 0) AS n_buys_30d,                                                           -- carts and purchases
    COALESCE(touched.n_events_7d, 0) AS n_events_7d,                                                     -- count
    COALESCE(searched.n_searches, 0) AS n_searches_30d,                                                  -- searches, each shared among the categories its term leads to
    COALESCE(searched.n_terms, 0) AS n_terms_30d,                                                        -- distinct terms, shared likewise
    DATE_PART('epoch', $as_of - GREATEST(touched.last_at, searched.last_at)) / 86400.0 AS days_since_event  -- days
FROM touched
FULL JOIN searched ON searched.user_id = touched.user_id AND searched.category_id = touched.category_id

-- What a user showed of interest in a category in 30 days: what they touched, and what their searches lead to.
-- grain: user_id, category_id
-- owner: growth-analytics
-- range: share_30d = 0 .. 1
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
),
signs AS (
    SELECT user_id, category_id, n_views, n_clicks, n_buys, n_events_7d, CAST(0 AS DECIMAL(38, 6)) AS n_searches, CAST(0 AS DECIMAL(38, 6)) AS n_terms, last_at
    FROM touched
    UNION ALL
    SELECT user_id, category_id, 0, 0, 0, 0, n_searches, n_terms, last_at
    FROM searched
)
SELECT
    user_id,
    category_id,
    SUM(n_views) AS n_views_30d,                                                  -- count
    SUM(n_clicks) AS n_clicks_30d,                                                -- count
    SUM(n_buys) AS n_buys_30d,                                                    -- carts and purchases
    SUM(n_events_7d) AS n_events_7d,                                              -- count
    SUM(n_searches) AS n_searches_30d,                                            -- searches, each shared among the categories its term leads to
    SUM(n_terms) AS n_terms_30d,                                                  -- distinct terms, shared likewise
    DATE_PART('epoch', $as_of - MAX(last_at)) / 86400.0 AS days_since_event,      -- days
    -- Of all that the user did, as if 5 more things had been elsewhere: few events prove little.
    CAST(SUM(n_views + n_clicks + n_buys + n_searches) AS DOUBLE)
        / (CAST(SUM(SUM(n_views + n_clicks + n_buys + n_searches)) OVER (PARTITION BY user_id) AS DOUBLE) + 5.0) AS share_30d  -- 0 to 1
FROM signs
GROUP BY user_id, category_id

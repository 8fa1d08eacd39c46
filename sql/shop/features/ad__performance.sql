-- How an ad did in the last 14 days.
-- grain: ad_id
-- owner: ads-science
-- window: 14 days
-- not_null: ctr_14d, cvr_14d
-- range: ctr_14d = 0 .. 1; cvr_14d = 0 .. 1
WITH shown AS (
    SELECT
        ad_id,
        COUNT(*) AS n_impressions,
        COUNT(*) FILTER (WHERE clicked) AS n_clicks,
        COUNT(*) FILTER (WHERE converted) AS n_conversions
    FROM impressions
    WHERE occurred_at >= $as_of - INTERVAL '14 days'
    GROUP BY ad_id
),
prior AS (
    -- All ads together, shrunk towards 2 % and 3 %: a young shop has no rates yet.
    SELECT
        (SUM(n_clicks) + 1.0) / (SUM(n_impressions) + 50.0) AS ctr,
        (SUM(n_conversions) + 1.0) / (SUM(n_clicks) + 30.0) AS cvr
    FROM shown
)
SELECT
    shown.ad_id,
    shown.n_impressions AS n_impressions_14d,                                         -- count
    (shown.n_clicks + 200.0 * prior.ctr) / (shown.n_impressions + 200.0) AS ctr_14d,  -- smoothed towards all ads with the weight of 200 impressions
    (shown.n_conversions + 50.0 * prior.cvr) / (shown.n_clicks + 50.0) AS cvr_14d     -- per click, likewise with 50 clicks
FROM shown
CROSS JOIN prior

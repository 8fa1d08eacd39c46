-- How an item did so far, under either policy.
-- grain: ad_id
-- owner: ads-science
WITH shown AS (
    SELECT ad_id, COUNT(*) AS n_impressions, COUNT(*) FILTER (WHERE clicked) AS n_clicks
    FROM impressions
    GROUP BY ad_id
),
prior AS (
    -- All items together, shrunk towards 0.4 %.
    SELECT (SUM(n_clicks) + 1.0) / (SUM(n_impressions) + 250.0) AS ctr
    FROM shown
)
SELECT
    shown.ad_id,
    shown.n_impressions,                                                         -- count
    (shown.n_clicks + 500.0 * prior.ctr) / (shown.n_impressions + 500.0) AS ctr  -- smoothed towards all items with the weight of 500 impressions
FROM shown
CROSS JOIN prior

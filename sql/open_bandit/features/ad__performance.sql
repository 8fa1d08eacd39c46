-- How an item did so far.
-- grain: ad_id
-- owner: ads-science
WITH prior AS (
    SELECT (COUNT(*) FILTER (WHERE clicked) + 1.0) / (COUNT(*) + 250.0) AS ctr
    FROM impressions
)
SELECT
    shown.ad_id,
    COUNT(*) AS n_impressions,                                                                     -- count
    (COUNT(*) FILTER (WHERE shown.clicked) + 500.0 * MIN(prior.ctr)) / (COUNT(*) + 500.0) AS ctr   -- smoothed with the weight of 500 impressions
FROM impressions AS shown
CROSS JOIN prior
GROUP BY shown.ad_id

-- How a user answered to ads in the last 30 days, beside what everybody does with the same ads.
-- grain: user_id
-- owner: ads-science
-- range: click_ratio_30d = 0 ..
-- window: 30 days
SELECT
    impressions.user_id,
    COUNT(*) FILTER (WHERE impressions.occurred_at >= $as_of - INTERVAL '14 days') AS n_impressions_14d,  -- count
    COUNT(*) FILTER (WHERE impressions.clicked AND impressions.occurred_at >= $as_of - INTERVAL '14 days') AS n_ad_clicks_14d,  -- count
    -- Clicks over those expected of the ads' rates. Decimals: the same in any order of summation.
    (COUNT(*) FILTER (WHERE impressions.clicked) + 5.0)
        / (CAST(COALESCE(SUM(CAST(ad__performance.ctr_14d AS DECIMAL(18, 6))), 0) AS DOUBLE) + 5.0) AS click_ratio_30d  -- smoothed towards 1 with the weight of 5 clicks
FROM impressions
LEFT JOIN ad__performance ON ad__performance.ad_id = impressions.ad_id
WHERE impressions.occurred_at >= $as_of - INTERVAL '30 days'
GROUP BY impressions.user_id

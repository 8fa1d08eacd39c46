-- How a user answered to ads in the last 14 days.
-- grain: user_id
-- owner: ads-science
-- window: 14 days
SELECT
    user_id,
    COUNT(*) AS n_impressions_14d,                                           -- count
    COUNT(*) FILTER (WHERE clicked) AS n_ad_clicks_14d,                      -- count
    (COUNT(*) FILTER (WHERE clicked) + 0.6) / (COUNT(*) + 30.0) AS ctr_14d   -- smoothed towards 2 % with the weight of 30 impressions
FROM impressions
WHERE occurred_at >= $as_of - INTERVAL '14 days'
GROUP BY user_id

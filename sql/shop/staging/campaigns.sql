-- Campaigns and what their advertisers ask for, as of the end of the day.
-- grain: campaign_id
-- owner: ads-platform
-- daily: campaigns
WITH numbered AS (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY campaign ORDER BY advertiser, daily_budget, target_roi, target_cpa, frequency_cap, min_impressions) AS delivery
    FROM raw.campaigns
)
SELECT
    campaign AS campaign_id,
    advertiser AS advertiser_id,
    CAST(GREATEST(daily_budget, 0) AS DECIMAL(18, 6)) AS daily_budget,  -- CNY
    target_roi,                                              -- revenue per cost; NULL = none asked for
    CAST(CASE WHEN target_cpa > 0 THEN target_cpa END AS DECIMAL(18, 6)) AS target_cpa,  -- CNY per order; NULL = none asked for
    CASE WHEN frequency_cap > 0 THEN frequency_cap END AS frequency_cap,  -- times a user may see an ad in a day; NULL = no cap
    CASE WHEN min_impressions > 0 THEN min_impressions END AS min_impressions  -- a day; NULL = none asked for
FROM numbered
WHERE delivery = 1

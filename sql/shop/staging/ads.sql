-- Ads as booked at the end of the day, those that have ended among them.
-- grain: ad_id
-- owner: ads-platform
-- daily: ads
-- not_null: campaign_id, category_id (warn)
-- accepted: bid_type = cpc | cpm
-- relationship: campaign_id = campaigns.campaign_id (warn)
WITH numbered AS (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY ad_id ORDER BY campaign, cat, sku, title, bid, bid_type, first_day, last_day) AS delivery
    FROM raw.ads
)
SELECT
    ad_id,
    campaign AS campaign_id,
    cat AS category_id,
    sku AS item_id,                                          -- the item it leads to
    TRIM(title) AS title,
    CAST(CASE WHEN bid > 0 AND bid < 1000000 THEN bid END AS DECIMAL(18, 6)) AS bid,  -- CNY per click (cpc) or per thousand impressions (cpm)
    CASE LOWER(TRIM(bid_type)) WHEN 'cpc' THEN 'cpc' WHEN 'cpm' THEN 'cpm' END AS bid_type,
    first_day AS starts_at,                                  -- from the beginning of that day
    last_day + INTERVAL '1 day' AS ends_at                   -- exclusive; NULL = runs on
FROM numbered
WHERE delivery = 1

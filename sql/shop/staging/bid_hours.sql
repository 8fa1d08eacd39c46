-- What each campaign's ads came to in each hour, and the bid multiplier tried.
-- grain: campaign_id, hour
-- owner: ads-platform
-- daily: bid_hours
SELECT
    campaign AS campaign_id,
    hour_ts AS hour,
    multiplier,                                             -- on the campaign's bids
    propensity,                                             -- probability of trying this multiplier
    auctions,                                               -- slots of the hour, if the campaign ran
    wins,                                                   -- impressions
    CAST(spend AS DECIMAL(18, 6)) AS spend,                 -- CNY
    clicks,                                                 -- of the hour's impressions
    orders AS conversions,                                  -- that happened in the hour, whenever their ad was shown
    CAST(order_value AS DECIMAL(18, 6)) AS value,           -- CNY, of those orders
    CAST(budget_left AS DECIMAL(18, 6)) AS budget_left      -- CNY, of the day's budget at the end of the hour
FROM raw.bid_hours

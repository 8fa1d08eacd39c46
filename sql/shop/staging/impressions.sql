-- Ads shown, each once, with what became of them. An outcome is known from when its log row arrived, not from when it happened.
-- grain: impression_id
-- owner: ads-platform
-- daily: ad_impressions
-- range: position = 1 .. 4; propensity = 0 .. 1
-- accepted: platform = web | app | mini-program
-- relationship: ad_id = ads.ad_id (warn)
WITH numbered AS (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY impression_id ORDER BY recv_ts, ts, device_id, ad_id, slot, channel, arm, propensity, policy_version, segment_id, charge) AS delivery
    FROM raw.ad_impressions
),
-- Clicks come within a day of the day's impressions and orders within 30 days: the rest of the two logs is somebody else's.
clicks AS (
    SELECT impression_id, MIN(recv_ts) AS known_at, MAX(charge) AS charge
    FROM raw.ad_clicks
    WHERE ts >= (SELECT MIN(ts) FROM raw.ad_impressions)
      AND ts < (SELECT MAX(ts) FROM raw.ad_impressions) + INTERVAL '1 day'
    GROUP BY impression_id
),
orders AS (
    SELECT impression_id, MIN(recv_ts) AS known_at, MAX(amount) AS amount
    FROM raw.ad_conversions
    WHERE ts >= (SELECT MIN(ts) FROM raw.ad_impressions)
      AND ts < (SELECT MAX(ts) FROM raw.ad_impressions) + INTERVAL '30 days'
    GROUP BY impression_id
),
-- An order without a click is no ad's doing.
outcomes AS (
    SELECT
        clicks.impression_id,
        clicks.known_at AS clicked_at,
        clicks.charge,
        CASE WHEN orders.impression_id IS NOT NULL THEN GREATEST(clicks.known_at, orders.known_at) END AS converted_at,
        CASE WHEN orders.amount > 0 AND orders.amount < 1000000 THEN orders.amount END AS amount
    FROM clicks
    LEFT JOIN orders ON orders.impression_id = clicks.impression_id
)
SELECT
    shown.impression_id,
    identities.user_id,                                     -- the device's owner; NULL = nobody knows
    shown.ad_id,
    shown.ts AS occurred_at,
    shown.recv_ts AS arrived_at,                            -- of the first delivery
    CASE WHEN shown.slot BETWEEN 1 AND 4 THEN shown.slot END AS position,  -- 1 = first of the page; NULL = not said
    CASE
        WHEN LOWER(TRIM(shown.channel)) IN ('web', 'h5', 'pc') THEN 'web'
        WHEN LOWER(TRIM(shown.channel)) IN ('app', 'ios', 'android') THEN 'app'
        WHEN LOWER(TRIM(shown.channel)) IN ('mini-program', 'miniprogram', 'mini_program', '小程序') THEN 'mini-program'
    END AS platform,                                        -- NULL = not said
    outcomes.clicked_at IS NOT NULL AS clicked,
    outcomes.clicked_at,                                    -- arrival of the click's row; NULL = not clicked
    outcomes.converted_at IS NOT NULL AS converted,         -- an order after the click
    outcomes.converted_at,                                  -- when both the click's and the order's row had arrived; NULL = no order
    CAST(outcomes.amount AS DECIMAL(18, 6)) AS revenue,     -- CNY; NULL = no order, or one without a valid amount
    CAST(
        CASE WHEN shown.charge < 1000000 THEN shown.charge ELSE 0 END + CASE WHEN outcomes.charge < 1000000 THEN outcomes.charge ELSE 0 END
        AS DECIMAL(18, 6)
    ) AS cost,  -- CNY, for the impression and its click
    CASE WHEN shown.propensity > 0 AND shown.propensity <= 1 THEN shown.propensity END AS propensity,  -- P(ad | user, arm, slot)
    LOWER(TRIM(shown.arm)) AS arm,                          -- champion, explore, holdout
    shown.policy_version,
    shown.segment_id                                        -- the user's primary segment when it was shown; NULL = none
FROM numbered AS shown
LEFT JOIN identities ON identities.device_id = shown.device_id AND identities.linked_at <= shown.ts
LEFT JOIN outcomes ON outcomes.impression_id = shown.impression_id
WHERE shown.delivery = 1

-- Canonical impressions; clicks are known at once, conversions and money are not in these logs.
-- grain: impression_id
-- owner: data-platform
-- not_null: user_id, propensity
-- accepted: arm = random | bts
-- range: position = 1 .. 3; propensity = 0 .. 1
-- relationship: ad_id = ads.ad_id
SELECT
    impression_id,         -- policy and running number
    user_id,               -- context
    ad_id,                 -- item
    occurred_at,
    position,              -- 1 left, 2 centre, 3 right
    clicked,
    propensity,            -- P(item | position) of the logging policy
    arm,                   -- logging policy: random, bts
    arm AS policy_version  -- a policy of these logs has one version
FROM contexts

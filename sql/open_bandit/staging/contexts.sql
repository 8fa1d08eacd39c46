-- Impressions of both logging policies, with the context standing in for the person.
-- grain: impression_id
-- owner: data-platform
WITH logged AS (
    SELECT 'random' AS arm, * FROM raw.random
    UNION ALL BY NAME
    SELECT 'bts' AS arm, * FROM raw.bts
),
hashed AS (
    SELECT *, MD5(CONCAT_WS('|', user_feature_0, user_feature_1, user_feature_2, user_feature_3)) AS user_id
    FROM logged
),
numbered AS (
    -- Rows that tie in everything are alike, so the numbers do not depend on the order of reading.
    SELECT *, ROW_NUMBER() OVER (
        PARTITION BY arm ORDER BY timestamp, item_id, position, user_id, click, propensity_score
    ) AS n
    FROM hashed
)
SELECT
    CONCAT_WS('-', arm, LPAD(CAST(n AS VARCHAR), 9, '0')) AS impression_id,  -- policy and running number
    user_id,                                                                 -- hash of the four features: a context, not a person
    user_feature_0,                                                          -- hashed by the publisher
    user_feature_1,                                                          -- likewise
    user_feature_2,                                                          -- likewise
    user_feature_3,                                                          -- likewise
    CONCAT('item_', LPAD(CAST(item_id AS VARCHAR), 2, '0')) AS ad_id,        -- the items are the ads
    timestamp AS occurred_at,
    position,                                                                -- 1 left, 2 centre, 3 right
    click = 1 AS clicked,
    propensity_score AS propensity,                                          -- P(item | position) of the logging policy
    arm                                                                      -- logging policy: random, bts
FROM numbered

-- Contexts as users: one row per combination of the four hashed features.
-- grain: user_id
-- owner: data-platform
SELECT DISTINCT
    user_id,         -- hash of the four features
    user_feature_0,  -- hashed by the publisher
    user_feature_1,  -- likewise
    user_feature_2,  -- likewise
    user_feature_3   -- likewise
FROM contexts

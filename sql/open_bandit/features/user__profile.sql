-- The context itself.
-- grain: user_id
-- owner: ads-science
SELECT
    user_id,
    user_feature_0,  -- hashed by the publisher
    user_feature_1,  -- likewise
    user_feature_2,  -- likewise
    user_feature_3   -- likewise
FROM users

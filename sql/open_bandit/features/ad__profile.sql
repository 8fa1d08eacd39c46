-- The item itself.
-- grain: ad_id
-- owner: ads-science
SELECT
    ad_id,
    item_feature_0,  -- standardised by the publisher; NULL = not given
    item_feature_2,  -- hashed
    item_feature_3   -- hashed
FROM ads

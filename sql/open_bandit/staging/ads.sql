-- Items as ads; an item's second feature stands for its category.
-- grain: ad_id
-- owner: data-platform
SELECT
    CONCAT('item_', LPAD(CAST(item_id AS VARCHAR), 2, '0')) AS ad_id,  -- as in the impressions
    item_feature_1 AS category_id,                                     -- hashed by the publisher; NULL = none
    item_feature_0,                                                    -- unknown quantity, standardised by the publisher
    item_feature_2,                                                    -- hashed
    item_feature_3                                                     -- hashed
FROM raw.item_context

-- The distinct values of the items' second feature; the publisher hashed the names.
-- grain: category_id
-- owner: data-platform
SELECT DISTINCT
    item_feature_1 AS category_id,                              -- hashed by the publisher
    CAST(NULL AS VARCHAR) AS parent_id,                         -- NULL: the taxonomy is flat
    CONCAT('category ', SUBSTR(item_feature_1, 1, 6)) AS name,  -- enough of the hash to tell categories apart
    FALSE AS sensitive                                          -- fashion
FROM raw.item_context
WHERE item_feature_1 IS NOT NULL

-- The taxonomy. What is not clearly harmless is sensitive.
-- grain: category_id
-- owner: merchandising
SELECT
    cat AS category_id,
    parent AS parent_id,   -- NULL = a root
    TRIM(name_zh) AS name,
    TRIM(name_en) AS name_en,
    COALESCE(UPPER(TRIM(sensitive)) <> 'N', TRUE) AS sensitive
FROM raw.categories

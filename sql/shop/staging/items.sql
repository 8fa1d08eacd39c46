-- What the shop sells, as of the end of the day.
-- grain: item_id
-- owner: merchandising
-- daily: items
-- unique: item_id
-- relationship: category_id = categories.category_id (warn)
WITH numbered AS (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY sku ORDER BY cat, title, price) AS delivery
    FROM raw.items
)
SELECT
    sku AS item_id,
    cat AS category_id,
    TRIM(title) AS title,
    CAST(CASE WHEN price > 0 AND price < 1000000 THEN price END AS DECIMAL(18, 6)) AS price  -- CNY; NULL = not priced
FROM numbered
WHERE delivery = 1

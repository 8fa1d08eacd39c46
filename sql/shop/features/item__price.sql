-- Where an item's price lies among those of its category: what is dear for a shirt is cheap for a telephone.
-- grain: item_id
-- owner: merchandising
-- range: price_level = 0 .. 1
SELECT
    item_id,
    CAST(price AS DOUBLE) AS price,                                            -- CNY
    PERCENT_RANK() OVER (PARTITION BY category_id ORDER BY price) AS price_level  -- 0 = the cheapest of its category, 1 = the dearest
FROM items
WHERE price IS NOT NULL

-- A click or an order known before its ad was shown: clocks disagree, or somebody invents clicks.
-- grain: impression_id
-- owner: ads-science
-- severity: warn
SELECT
    impression_id,
    ad_id,
    occurred_at,
    clicked_at,      -- arrival; NULL = not clicked
    converted_at     -- arrival; NULL = no order
FROM impressions
WHERE clicked_at < occurred_at OR converted_at < occurred_at

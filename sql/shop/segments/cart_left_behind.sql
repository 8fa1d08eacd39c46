-- Put something into the cart in the last three days and has bought nothing since.
-- grain: user_id
-- owner: growth-analytics
-- label: 购物车未付款
-- place: after
SELECT user_id
FROM user__recency
WHERE hours_since_cart < 72.0 AND (hours_since_purchase IS NULL OR hours_since_purchase > hours_since_cart)

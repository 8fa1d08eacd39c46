-- Bought in the last week; the segment are the users like them who did not.
-- grain: user_id
-- owner: growth-analytics
-- label: 近似近期买家
-- kind: seed
-- place: after
SELECT user_id
FROM user__recency
WHERE hours_since_purchase < 168.0

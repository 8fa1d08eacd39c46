-- What the shop knows of a user from registration.
-- grain: user_id
-- owner: growth-analytics
SELECT
    user_id,
    region,                                                                            -- name; NULL = not given
    DATE_PART('epoch', $as_of - registered_at) / 86400.0 AS days_since_registration    -- days; NULL = not known
FROM users
WHERE registered_at < $as_of OR registered_at IS NULL

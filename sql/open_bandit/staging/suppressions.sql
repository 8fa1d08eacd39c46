-- Nobody: these logs hold no person. The list exists so that the job need not guess.
-- grain: user_id
-- owner: privacy
-- daily: suppressions
SELECT
    uid AS user_id,                      -- pseudonym
    MIN(reason) AS reason,               -- of several, the first by name
    MIN(effective_at) AS effective_at    -- of several, the first; NULL = not said
FROM raw.suppressions
GROUP BY uid

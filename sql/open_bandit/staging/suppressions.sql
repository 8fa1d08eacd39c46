-- Nobody: these logs hold no person. The list exists so that the job need not guess.
-- grain: user_id
-- owner: privacy
-- daily: suppressions
SELECT
    uid AS user_id,
    reason,
    effective_at
FROM raw.suppressions

-- The latest answer of each user to each purpose; what is not a clear yes is a no.
-- grain: user_id, purpose
-- owner: privacy
SELECT uid AS user_id, 'profile' AS purpose, COALESCE(UPPER(TRIM(profile_ok)) = 'Y', FALSE) AS granted, updated AS effective_at
FROM raw.consents
UNION ALL
SELECT uid, 'target', COALESCE(UPPER(TRIM(ads_ok)) = 'Y', FALSE), updated
FROM raw.consents
UNION ALL
SELECT uid, 'measure', COALESCE(UPPER(TRIM(measure_ok)) = 'Y', FALSE), updated
FROM raw.consents

-- Which categories a search term leads to: what people touched right after searching it, over all users.
-- grain: term, category_id
-- owner: search
-- window: 30 days
WITH led_to AS (
    SELECT LOWER(TRIM(query)) AS term, category_id, COUNT(*) AS n_events
    FROM events
    WHERE TRIM(query) <> '' AND category_id IS NOT NULL AND occurred_at >= $as_of - INTERVAL '30 days'
    GROUP BY LOWER(TRIM(query)), category_id
),
by_term AS (
    SELECT term, SUM(n_events) AS n_events
    FROM led_to
    GROUP BY term
)
SELECT
    led_to.term,                                                            -- lower case, trimmed
    led_to.category_id,
    led_to.n_events AS n_events_30d,                                        -- count
    CAST(led_to.n_events AS DOUBLE) / (by_term.n_events + 3.0) AS share_30d -- of the term's events, shrunk: a rare term says little
FROM led_to
JOIN by_term ON by_term.term = led_to.term
WHERE led_to.n_events >= 2  -- once is chance

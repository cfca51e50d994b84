-- Runs that have ended, but not at a moment, or the other way round.
SELECT run_id AS subject, status || CASE WHEN ended_at IS NULL THEN ', ended at no moment' ELSE ', with a moment of its end' END AS message
FROM runs WHERE (status IN ('completed', 'failed', 'aborted')) <> (ended_at IS NOT NULL)
LIMIT :limit

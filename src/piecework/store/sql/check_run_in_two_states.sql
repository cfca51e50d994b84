-- Paused runs that never paused, and runs that go on although they stand as paused.
SELECT run_id AS subject, status || CASE WHEN paused_at IS NULL THEN ', paused at no moment' ELSE ', with the moment of a pause' END AS message
FROM runs
WHERE ended_at IS NULL AND status IN ('queued', 'running', 'paused') AND (status = 'paused') <> (paused_at IS NOT NULL)
LIMIT :limit

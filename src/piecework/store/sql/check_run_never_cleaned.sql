-- Ended runs that nobody will clean.
SELECT run_id AS subject, status || ', not cleaned, neither owned nor due' AS message
FROM runs
WHERE status IN ('completed', 'failed', 'aborted') AND ended_at IS NOT NULL
  AND cleaned = 0 AND owner IS NULL AND due_at IS NULL
LIMIT :limit

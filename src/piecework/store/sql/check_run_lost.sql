-- Running runs that nobody has and nobody will have.
SELECT run_id AS subject, 'running, neither owned nor due' AS message
FROM runs WHERE status = 'running' AND owner IS NULL AND due_at IS NULL
LIMIT :limit

-- Runs with a deadline that are not paused: it would wake what does not sleep.
SELECT run_id AS subject, status || ', with the deadline of a pause' AS message
FROM runs WHERE expires_at IS NOT NULL AND status <> 'paused'
LIMIT :limit

-- Runs that were resumed with a patch that is gone.
SELECT r.run_id AS subject, r.status || ', and what it was resumed with is gone' AS message
FROM runs r LEFT JOIN run_values v ON v.run_id = r.run_id AND v.name = 'patch'
WHERE r.patched = 1 AND r.status NOT IN ('completed', 'failed', 'aborted') AND v.run_id IS NULL
LIMIT :limit

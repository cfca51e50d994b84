-- Runs whose history may go.
SELECT run_id FROM runs
WHERE created_at < :before AND ended_at IS NOT NULL AND ended_at < :before AND cleaned = 1 AND kind <> 'piece'
ORDER BY created_at, run_id LIMIT :limit

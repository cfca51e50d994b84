-- Runs whose history may go.
SELECT run_id FROM runs
WHERE created_at < :before AND ended_at IS NOT NULL AND ended_at < :before AND cleaned = 1
  AND NOT (kind = 'piece' AND EXISTS (SELECT 1 FROM pieces p WHERE p.space = runs.space AND p.piece_id = runs.key_value))
ORDER BY created_at, run_id LIMIT :limit

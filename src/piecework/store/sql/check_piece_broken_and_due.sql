-- Broken pieces with an update to come.
SELECT space || '/' || piece_id AS subject, 'broken, but an update of it is to come' AS message
FROM pieces WHERE observed = 'broken' AND (run_id IS NOT NULL OR next_run_at IS NOT NULL)
LIMIT :limit

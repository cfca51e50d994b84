-- Pieces with an update that follows another, while no other is under way.
SELECT p.space || '/' || p.piece_id AS subject, 'update ' || p.after_run_id || ' follows one that is not under way' AS message
FROM pieces p LEFT JOIN runs r ON r.run_id = p.run_id
WHERE p.after_run_id IS NOT NULL AND (r.run_id IS NULL OR r.status IN ('completed', 'failed', 'aborted'))
LIMIT :limit

-- Removed pieces that stand there although no update of them has still to end.
SELECT p.space || '/' || p.piece_id AS subject, 'removed, and no update of it has still to end' AS message
FROM pieces p LEFT JOIN runs r ON r.run_id = p.run_id
WHERE p.desired = 'removed' AND (r.run_id IS NULL OR r.status IN ('completed', 'failed', 'aborted'))
LIMIT :limit

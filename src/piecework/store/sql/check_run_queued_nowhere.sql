-- Queued runs outside of a slot that are never due, and follow no update of a piece.
SELECT run_id AS subject, 'queued in no slot and never due' AS message
FROM runs r WHERE status = 'queued' AND due_at IS NULL AND slot_key IS NULL
  AND NOT EXISTS (SELECT 1 FROM pieces p WHERE p.space = r.space AND p.piece_id = r.key_value AND p.after_run_id = r.run_id)
LIMIT :limit

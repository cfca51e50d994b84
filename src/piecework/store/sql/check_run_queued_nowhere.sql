-- Queued runs outside of a slot that are never due.
SELECT run_id AS subject, 'queued in no slot and never due' AS message
FROM runs WHERE status = 'queued' AND due_at IS NULL AND slot_key IS NULL
LIMIT :limit

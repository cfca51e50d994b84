-- Queued runs that a node has already.
SELECT run_id AS subject, 'queued, owner ' || owner AS message
FROM runs WHERE owner IS NOT NULL AND status = 'queued' AND due_at IS NULL
LIMIT :limit

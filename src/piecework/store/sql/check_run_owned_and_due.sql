-- Runs that a node has and that may be claimed as well.
SELECT run_id AS subject, status || ', owner ' || owner || ', and due' AS message
FROM runs WHERE owner IS NOT NULL AND due_at IS NOT NULL
LIMIT :limit

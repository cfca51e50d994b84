-- Paused runs that a node has, or that are due.
SELECT run_id AS subject, 'paused, ' || CASE WHEN owner IS NOT NULL THEN 'owner ' || owner ELSE 'due' END AS message
FROM runs WHERE status = 'paused' AND (owner IS NOT NULL) <> (due_at IS NOT NULL)
LIMIT :limit

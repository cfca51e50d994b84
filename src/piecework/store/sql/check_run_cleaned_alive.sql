-- Runs that count as cleaned although they have not ended, or although a node has them.
SELECT run_id AS subject, status || ', cleaned, owner ' || coalesce(owner, 'nobody') AS message
FROM runs WHERE cleaned = 1 AND (owner IS NOT NULL OR status NOT IN ('completed', 'failed', 'aborted'))
LIMIT :limit

-- Runs of owners that are gone, or whose lease has ended; the + keeps SQLite off the index of all runs by time.
SELECT {columns} FROM runs WHERE owner IS NOT NULL AND owner <> :owner
  AND owner NOT IN (SELECT node_id FROM nodes WHERE expires_at IS NULL OR expires_at > :now)
  AND (kind || ':' || workflow_id IN (:known) OR (kind = 'workflow' AND ended_at <= :forsaken))
ORDER BY +created_at, run_id LIMIT :limit

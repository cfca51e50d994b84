-- Unended runs whose event is gone: a node could not give it to them.
SELECT r.run_id AS subject, r.status || ', its event ' || r.event_seq || ' is gone' AS message
FROM runs r LEFT JOIN events e ON e.seq = r.event_seq
WHERE r.ended_at IS NULL AND r.event_seq IS NOT NULL AND e.seq IS NULL
  AND r.status NOT IN ('completed', 'failed', 'aborted')
LIMIT :limit

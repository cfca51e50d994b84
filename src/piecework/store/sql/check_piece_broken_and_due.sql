-- Broken pieces with an update to come that nobody has asked for by hand.
SELECT p.space || '/' || p.piece_id AS subject, 'broken, but an update of it is to come' AS message
FROM pieces p LEFT JOIN runs r ON r.run_id = p.run_id
WHERE p.observed = 'broken' AND (p.run_id IS NOT NULL OR p.next_run_at IS NOT NULL)
  AND coalesce(r.trigger_id, '') <> 'manual'
LIMIT :limit

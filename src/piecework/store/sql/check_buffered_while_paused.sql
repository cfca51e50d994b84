-- Paused runs beside an event that they wait for. One that could not go on keeps the patch of that resume, and goes on
-- at its deadline: what comes meanwhile is kept behind it.
SELECT r.run_id AS subject, 'paused beside ' || x.kept || ' events that it waits for' AS message
FROM (SELECT run_id, count(*) AS kept FROM buffers GROUP BY run_id) x JOIN runs r ON r.run_id = x.run_id
WHERE r.status = 'paused' AND NOT (r.patched = 1 AND r.expires_at IS NOT NULL)
LIMIT :limit

-- Paused runs beside events that they could go on with. One that could not go on keeps the patch of that resume, and
-- goes on at its deadline, or when a definition comes that can carry it (it has an error): what comes meanwhile is kept
-- behind it. A wait for one of each type keeps what came of some types until there is one of the last.
SELECT r.run_id AS subject, 'paused beside ' || x.kept || ' events that it waits for' AS message
FROM (
    SELECT b.run_id, count(*) AS kept
    FROM buffers b
    WHERE NOT EXISTS (
        SELECT 1 FROM waits w
        WHERE w.wait_id = b.wait_id AND w.mode = 'all' AND NOT EXISTS (
            SELECT 1 FROM buffers o
            WHERE o.run_id = b.run_id AND o.wait_id = b.wait_id AND o.event_type = w.event_type
        )
    )
    GROUP BY b.run_id
) x JOIN runs r ON r.run_id = x.run_id
WHERE r.status = 'paused' AND NOT (r.patched = 1 AND (r.expires_at IS NOT NULL OR r.error IS NOT NULL))
LIMIT :limit

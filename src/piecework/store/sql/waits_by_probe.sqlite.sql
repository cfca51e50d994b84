-- Waits that an event may match, of each probe so many.
SELECT {w.columns} FROM json_each(:probes) p JOIN waits w ON (w.wait_id, w.event_type) IN (
    SELECT wait_id, event_type FROM waits WHERE probe = p.value ORDER BY wait_id LIMIT :limit
)
ORDER BY w.probe, w.wait_id

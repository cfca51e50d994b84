-- Waits that an event may match, of each probe so many.
SELECT {w.columns} FROM unnest(:probes::text[]) AS p (probe) CROSS JOIN LATERAL (
    SELECT {columns} FROM waits WHERE probe = p.probe ORDER BY wait_id LIMIT :limit
) w
ORDER BY w.probe, w.wait_id

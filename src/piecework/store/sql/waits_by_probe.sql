-- Waits that an event may match.
SELECT {columns} FROM waits WHERE probe IN (:probes)

-- The processes that run runs, the oldest first.
SELECT node_id, pid, host, version, started_at, renewed_at, expires_at FROM nodes ORDER BY started_at, node_id

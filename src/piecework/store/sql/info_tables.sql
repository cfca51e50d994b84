-- How many rows each table has.
SELECT 'events' AS name, count(*) AS row_count FROM events
UNION ALL SELECT 'event_inbox', count(*) FROM event_inbox
UNION ALL SELECT 'deliveries', count(*) FROM deliveries
UNION ALL SELECT 'fanouts', count(*) FROM fanouts
UNION ALL SELECT 'workflows', count(*) FROM workflows
UNION ALL SELECT 'routes', count(*) FROM routes
UNION ALL SELECT 'slots', count(*) FROM slots
UNION ALL SELECT 'runs', count(*) FROM runs
UNION ALL SELECT 'run_values', count(*) FROM run_values
UNION ALL SELECT 'timeline', count(*) FROM timeline
UNION ALL SELECT 'waits', count(*) FROM waits
UNION ALL SELECT 'buffers', count(*) FROM buffers
UNION ALL SELECT 'signals', count(*) FROM signals
UNION ALL SELECT 'occurrences', count(*) FROM occurrences
UNION ALL SELECT 'pieces', count(*) FROM pieces
UNION ALL SELECT 'spaces', count(*) FROM spaces
UNION ALL SELECT 'nodes', count(*) FROM nodes

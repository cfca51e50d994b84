-- Who was registered for event types, or for patterns of them.
SELECT {columns} FROM routes WHERE event_type IN (:types) OR event_type LIKE '%*%' ORDER BY event_type, workflow_id

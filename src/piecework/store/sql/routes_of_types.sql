-- Who was registered for event types.
SELECT {columns} FROM routes WHERE event_type IN (:types) ORDER BY event_type, workflow_id

-- What workflows were registered for.
SELECT {columns} FROM routes WHERE workflow_id IN (:workflow_ids) ORDER BY workflow_id, event_type

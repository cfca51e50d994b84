-- Events that wait for workflows, the oldest first, behind one that was looked at.
SELECT {columns} FROM deliveries
WHERE outcome = 'pending' AND workflow_id IN (:workflow_ids) AND (event_seq, workflow_id) > (:after, :after_id)
ORDER BY event_seq, workflow_id LIMIT :limit

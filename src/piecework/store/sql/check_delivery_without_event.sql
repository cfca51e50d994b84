-- Deliveries that are still to be decided, of events that are gone.
SELECT CAST(d.event_seq AS TEXT) AS subject, 'workflow ' || d.workflow_id || ' has still to decide about it, and it is gone' AS message
FROM deliveries d LEFT JOIN events e ON e.seq = d.event_seq
WHERE d.outcome = 'pending' AND e.seq IS NULL
LIMIT :limit

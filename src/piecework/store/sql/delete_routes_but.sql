-- Ends the routes of a workflow, but for some event types.
DELETE FROM routes WHERE workflow_id = :workflow_id AND event_type NOT IN (:types)

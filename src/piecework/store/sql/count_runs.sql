-- How many runs there are of each kind and status.
SELECT kind, workflow_id, status, count(*) FROM runs GROUP BY kind, workflow_id, status

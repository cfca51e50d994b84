-- The run that has been open longest.
SELECT run_id, kind, workflow_id, space, status, created_at FROM runs WHERE ended_at IS NULL
ORDER BY created_at, run_id LIMIT 1

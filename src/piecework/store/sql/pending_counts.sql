-- How many events wait for each workflow.
SELECT workflow_id, count(*) FROM deliveries WHERE outcome = 'pending' GROUP BY workflow_id

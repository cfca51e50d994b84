-- Values of runs that are not there.
SELECT x.run_id AS subject, x.rows_left || ' in run_values for a run that is not there' AS message
FROM (SELECT run_id, count(*) AS rows_left FROM run_values GROUP BY run_id) x LEFT JOIN runs r ON r.run_id = x.run_id
WHERE r.run_id IS NULL
LIMIT :limit

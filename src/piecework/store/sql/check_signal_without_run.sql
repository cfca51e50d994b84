-- Signals that are kept for runs that have ended, or are not there.
SELECT x.run_id AS subject,
       x.rows_left || ' in signals for a run that ' || CASE WHEN r.run_id IS NULL THEN 'is not there' ELSE 'has ended' END AS message
FROM (SELECT run_id, count(*) AS rows_left FROM signals GROUP BY run_id) x LEFT JOIN runs r ON r.run_id = x.run_id
WHERE r.run_id IS NULL OR r.status IN ('completed', 'failed', 'aborted')
LIMIT :limit

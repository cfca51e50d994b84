-- Unended runs that count other signals than are kept for them: those beyond the count would never arrive.
SELECT r.run_id AS subject, 'counts ' || r.signals || ' signals, ' || coalesce(x.kept, 0) || ' are kept for it' AS message
FROM runs r LEFT JOIN (SELECT run_id, count(*) AS kept FROM signals GROUP BY run_id) x ON x.run_id = r.run_id
WHERE r.ended_at IS NULL AND r.status NOT IN ('completed', 'failed', 'aborted') AND r.signals <> coalesce(x.kept, 0)
LIMIT :limit

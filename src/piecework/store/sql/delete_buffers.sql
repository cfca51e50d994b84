-- Forgets what was kept for runs.
DELETE FROM buffers WHERE run_id IN (:run_ids)

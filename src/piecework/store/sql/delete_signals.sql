-- Forgets signals of runs.
DELETE FROM signals WHERE run_id IN (:run_ids)

-- Removes the values of runs.
DELETE FROM run_values WHERE run_id IN (:run_ids)

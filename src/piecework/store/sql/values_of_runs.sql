-- The large values of runs.
SELECT {columns} FROM run_values WHERE run_id IN (:run_ids)

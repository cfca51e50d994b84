-- Runs by id.
SELECT {columns} FROM runs WHERE run_id IN (:run_ids)

-- Removes runs for good.
DELETE FROM runs WHERE run_id IN (:run_ids)

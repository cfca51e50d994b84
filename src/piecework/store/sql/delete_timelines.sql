-- Removes the timelines of runs.
DELETE FROM timeline WHERE run_id IN (:run_ids)

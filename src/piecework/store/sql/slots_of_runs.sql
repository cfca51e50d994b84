-- Which slots runs are in; a run's slot never changes.
SELECT run_id, slot_key FROM runs WHERE run_id IN (:run_ids)

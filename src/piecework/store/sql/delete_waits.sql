-- Forgets what runs wait for.
DELETE FROM waits WHERE run_id IN (:run_ids)

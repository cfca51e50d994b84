-- Events kept for runs that had not paused yet, oldest first.
SELECT {columns} FROM buffers WHERE run_id IN (:run_ids) ORDER BY run_id, event_seq

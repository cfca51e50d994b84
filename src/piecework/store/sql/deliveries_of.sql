-- What became of events.
SELECT {columns} FROM deliveries WHERE event_seq IN (:seqs) ORDER BY event_seq, workflow_id, trigger_id, run_id

-- What became of an event at runs that waited for it.
SELECT {columns} FROM deliveries WHERE event_seq = :seq AND trigger_id = '' AND run_id IN (:run_ids)

-- Everything that runs wait for.
SELECT {columns} FROM waits WHERE run_id IN (:run_ids)

-- The signals that runs have not taken in, in their order.
SELECT {columns} FROM signals WHERE run_id IN (:run_ids) ORDER BY run_id, number

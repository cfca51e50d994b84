-- The runs that a schedule asked for and that have not ended, the earliest time first.
SELECT {columns} FROM runs WHERE ended_at IS NULL AND kind = 'job' AND trigger_id = :trigger_id
ORDER BY created_at, run_id

-- A run's timeline, oldest first.
SELECT {columns} FROM timeline WHERE run_id = :run_id ORDER BY decision, attempt, ordinal

-- Runs that were woken and paused again, because no definition could carry them.
SELECT {columns} FROM runs WHERE ended_at IS NULL AND status = 'paused' AND patched = 1 AND expires_at IS NULL
ORDER BY created_at, run_id

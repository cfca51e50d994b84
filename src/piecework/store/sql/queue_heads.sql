-- The runs that wait longest for room in a slot.
SELECT {columns} FROM runs
WHERE slot_key = :slot_key AND status = 'queued' AND due_at IS NULL ORDER BY event_seq, run_id LIMIT :limit

-- The runs that wait longest in slots, each slot's in their order.
SELECT r.slot_key, r.run_id FROM json_each(:slot_keys) k JOIN runs r ON r.run_id IN (
    SELECT run_id FROM runs WHERE slot_key = k.value AND status = 'queued' AND due_at IS NULL ORDER BY place LIMIT :limit
)
ORDER BY r.slot_key, r.place

-- The runs that wait longest in slots, each slot's in their order.
SELECT r.slot_key, r.run_id FROM unnest(:slot_keys::text[]) AS k (slot_key) CROSS JOIN LATERAL (
    SELECT slot_key, run_id, place FROM runs
    WHERE slot_key = k.slot_key AND status = 'queued' AND due_at IS NULL ORDER BY place LIMIT :limit
) r
ORDER BY r.slot_key, r.place

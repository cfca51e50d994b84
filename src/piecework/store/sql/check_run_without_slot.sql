-- Runs that take up room in a slot that does not exist.
SELECT r.run_id AS subject, r.status || ', in the slot ' || r.slot_key || ', which does not exist' AS message
FROM runs r LEFT JOIN slots s ON s.slot_key = r.slot_key
WHERE r.slot_key IS NOT NULL AND r.cleaned = 0 AND s.slot_key IS NULL
LIMIT :limit

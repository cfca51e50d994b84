-- Slots whose pending run is not there, not theirs, or does not wait.
SELECT s.slot_key AS subject, 'its pending run ' || s.pending_run_id || CASE
           WHEN r.run_id IS NULL THEN ' is gone'
           WHEN r.slot_key IS NULL OR r.slot_key <> s.slot_key THEN ' is in another slot'
           ELSE ' does not wait: it is ' || r.status END AS message
FROM slots s LEFT JOIN runs r ON r.run_id = s.pending_run_id
WHERE s.pending_run_id IS NOT NULL AND (
    r.run_id IS NULL OR r.slot_key IS NULL OR r.slot_key <> s.slot_key
    OR r.status <> 'queued' OR r.due_at IS NOT NULL
)
LIMIT :limit

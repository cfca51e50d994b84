-- Slots whose active run is not there, not theirs, or has no place.
SELECT s.slot_key AS subject, 'its active run ' || s.active_run_id || CASE
           WHEN r.run_id IS NULL THEN ' is gone'
           WHEN r.slot_key IS NULL OR r.slot_key <> s.slot_key THEN ' is in another slot'
           ELSE ' has no place: it is ' || r.status END AS message
FROM slots s LEFT JOIN runs r ON r.run_id = s.active_run_id
WHERE s.active_run_id IS NOT NULL AND (
    r.run_id IS NULL OR r.slot_key IS NULL OR r.slot_key <> s.slot_key
    OR (r.status IN ('completed', 'failed', 'aborted') AND r.telling <> 1)
    OR (r.status = 'queued' AND r.due_at IS NULL)
    OR (r.status = 'paused' AND s.hold_while_paused = 0)
)
LIMIT :limit

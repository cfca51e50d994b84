-- Slots with more runs at once than they have room for. A resumed run never waits for room, so where a pause gives its
-- place up only those count that never paused. A changed mode ends nobody, so for a while there may be more then.
SELECT s.slot_key AS subject,
       c.taken || ' runs at once, ' || s.concurrency || ' are allowed (more are in order only when its mode was changed '
       || 'while they ran)' AS message
FROM slots s JOIN (
    SELECT r.slot_key, count(*) AS taken
    FROM runs r JOIN slots o ON o.slot_key = r.slot_key
    WHERE (o.hold_while_paused = 1 OR (r.resume_count = 0 AND r.paused_at IS NULL AND r.status <> 'paused'))
      AND NOT (r.cleaned = 1 AND r.status IN ('completed', 'failed', 'aborted'))
      AND NOT (r.status = 'queued' AND r.due_at IS NULL)
    GROUP BY r.slot_key
) c ON c.slot_key = s.slot_key
WHERE c.taken > s.concurrency
LIMIT :limit

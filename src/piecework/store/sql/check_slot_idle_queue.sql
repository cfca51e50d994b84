-- Slots with room, and runs that wait for it.
SELECT slot_key AS subject, queued || ' queued beside room: ' || live || ' live, ' || paused || ' of them paused, '
       || closing || ' closing, ' || concurrency || ' allowed' AS message
FROM slots
WHERE queued > 0 AND CASE WHEN hold_while_paused = 1 THEN live ELSE live - paused END + closing < concurrency
LIMIT :limit

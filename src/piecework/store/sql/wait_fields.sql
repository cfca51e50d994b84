-- The fields that waits of an event type look at: a loose index scan, one probe a field.
WITH RECURSIVE looked_at (field) AS (
    SELECT min(field) FROM waits WHERE event_type = :type
    UNION ALL
    SELECT (SELECT min(field) FROM waits WHERE event_type = :type AND field > looked_at.field)
    FROM looked_at WHERE looked_at.field IS NOT NULL
)
SELECT field FROM looked_at WHERE field IS NOT NULL

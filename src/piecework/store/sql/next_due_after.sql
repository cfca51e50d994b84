-- The earliest moment behind another at which there may be something to do, whatever is due by then.
SELECT min(moment) FROM (
    SELECT min(next_due) AS moment FROM spaces WHERE next_due > :now
    UNION ALL
    SELECT min((
        SELECT min(r.due_at) FROM runs r WHERE r.space = s.space AND r.due_at > :now AND r.owner IS NULL
    )) FROM spaces s WHERE s.next_due <= :now
    UNION ALL
    SELECT min(expires_at) FROM runs WHERE expires_at > :now
) AS moments

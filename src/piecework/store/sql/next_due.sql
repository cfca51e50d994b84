-- The earliest moment at which there may be something to do.
SELECT min(moment) FROM (
    SELECT min(next_due) AS moment FROM spaces WHERE next_due IS NOT NULL
    UNION ALL
    SELECT min(expires_at) FROM runs WHERE expires_at IS NOT NULL
) AS moments

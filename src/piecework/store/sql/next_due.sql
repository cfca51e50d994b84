-- The earliest moment at which there is something to do.
SELECT min(moment) FROM (
    SELECT min(due_at) AS moment FROM runs WHERE due_at IS NOT NULL AND owner IS NULL
      AND kind || ':' || workflow_id IN (:known) AND NOT (kind = 'piece' AND space IN (:full))
    UNION ALL
    SELECT min(expires_at) FROM runs WHERE expires_at IS NOT NULL
)

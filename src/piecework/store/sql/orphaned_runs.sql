-- Runs of other owners: on an engine whose lock proves them dead they are all ours to take.
SELECT {columns} FROM runs WHERE owner IS NOT NULL AND owner <> :owner
  AND kind || ':' || workflow_id IN (:known)
ORDER BY event_seq LIMIT :limit

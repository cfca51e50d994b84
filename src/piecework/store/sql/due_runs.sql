-- Runs that may be claimed, the longest due first.
SELECT {columns} FROM runs WHERE due_at IS NOT NULL AND due_at <= :now AND owner IS NULL
  AND kind || ':' || workflow_id IN (:known)
  AND NOT (kind = 'piece' AND space IN (:full))
ORDER BY due_at, event_seq LIMIT :limit

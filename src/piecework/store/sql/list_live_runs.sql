-- Unended runs, the newest first, behind a cursor.
SELECT {columns} FROM runs
WHERE ended_at IS NULL
  AND (:status IS NULL OR status = :status)
  AND (:workflow IS NULL OR workflow_id = :workflow)
  AND (:space IS NULL OR space = :space)
  AND (:kind IS NULL OR kind = :kind)
  AND (:created_at IS NULL OR (created_at, run_id) < (:created_at, :run_id))
ORDER BY created_at DESC, run_id DESC LIMIT :limit

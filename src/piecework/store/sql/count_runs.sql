-- How many runs there are of a status, a workflow, a space and a kind.
SELECT count(*) FROM runs
WHERE (:status IS NULL OR status = :status)
  AND (:workflow IS NULL OR workflow_id = :workflow)
  AND (:space IS NULL OR space = :space)
  AND (:kind IS NULL OR kind = :kind)

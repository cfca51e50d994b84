-- Runs that may be claimed, of each space at most the same number, the longest due first.
SELECT r.run_id, r.space, r.kind FROM json_each(:spaces) s JOIN runs r ON r.run_id IN (
    SELECT run_id FROM runs WHERE space = s.value AND due_at IS NOT NULL AND due_at <= :now AND owner IS NULL
      AND (kind || ':' || workflow_id IN (:known) OR (kind = 'workflow' AND ended_at <= :forsaken))
      AND NOT (:barred <> '[]' AND abort_reason IS NULL AND ended_at IS NULL AND
          patched || ':' || length(workflow_id) || ':' || workflow_id || length(trigger_id) || ':' || trigger_id
          || length(coalesce(version, '')) || ':' || coalesce(version, '') || coalesce(stage, '') IN (:barred))
      AND NOT (kind = 'piece' AND space IN (:full))
    ORDER BY due_at, place LIMIT :most
)
ORDER BY r.due_at, r.place

-- Runs that may be claimed, of each space so many, the longest due first; those that others are claiming are passed over.
SELECT r.run_id, r.space, r.kind FROM unnest(:spaces::text[], :counts::bigint[]) AS s (space, count)
CROSS JOIN LATERAL (
    SELECT run_id, space, kind, due_at, place FROM runs
    WHERE space = s.space AND due_at IS NOT NULL AND due_at <= :now AND owner IS NULL
      AND (kind || ':' || workflow_id = ANY(:known::text[]) OR (kind = 'workflow' AND ended_at <= :forsaken))
      AND NOT (cardinality(:barred::text[]) > 0 AND abort_reason IS NULL AND ended_at IS NULL AND
          patched || ':' || length(workflow_id) || ':' || workflow_id || length(trigger_id) || ':' || trigger_id
          || length(coalesce(version, '')) || ':' || coalesce(version, '') || coalesce(stage, '') = ANY(:barred::text[]))
      AND NOT (kind = 'piece' AND space = ANY(:full::text[]))
    ORDER BY due_at, place LIMIT s.count FOR NO KEY UPDATE SKIP LOCKED
) r
ORDER BY r.due_at, r.place

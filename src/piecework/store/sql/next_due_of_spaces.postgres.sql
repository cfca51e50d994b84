-- When there is something to claim in spaces; those in which there is nothing are left out.
SELECT s.space, r.due_at FROM unnest(:spaces::text[]) AS s (space) CROSS JOIN LATERAL (
    SELECT due_at FROM runs WHERE space = s.space AND due_at IS NOT NULL AND owner IS NULL ORDER BY due_at, place LIMIT 1
) r

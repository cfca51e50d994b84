-- When there is something to claim in spaces; those in which there is nothing are left out.
SELECT s.value, r.due_at FROM json_each(:spaces) s JOIN runs r ON r.run_id IN (
    SELECT run_id FROM runs WHERE space = s.value AND due_at IS NOT NULL AND owner IS NULL ORDER BY due_at, place LIMIT 1
)

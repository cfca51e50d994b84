-- The workflows that events find.
SELECT {columns} FROM workflows ORDER BY workflow_id

-- The slots of a workflow, behind a key.
SELECT {columns} FROM slots WHERE workflow_id = :workflow_id AND slot_key > :after ORDER BY slot_key LIMIT :limit

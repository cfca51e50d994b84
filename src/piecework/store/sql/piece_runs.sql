-- The updates of one piece, the newest first.
SELECT {columns} FROM runs WHERE kind = 'piece' AND space = :space AND key_value = :piece_id
ORDER BY created_at DESC, run_id DESC LIMIT :limit

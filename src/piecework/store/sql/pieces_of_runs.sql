-- The pieces that runs are updates of.
SELECT {p.columns} FROM pieces p JOIN runs r ON r.space = p.space AND r.key_value = p.piece_id
WHERE r.run_id IN (:run_ids) AND r.kind = 'piece'

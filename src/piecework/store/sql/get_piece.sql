-- One piece.
SELECT {columns} FROM pieces WHERE space = :space AND piece_id = :piece_id

-- Registered pieces.
SELECT {columns} FROM pieces WHERE (:space IS NULL OR space = :space) ORDER BY space, piece_id

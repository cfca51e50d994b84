-- The pieces of an integration that an event is for, behind one that was looked at.
SELECT {columns} FROM pieces
WHERE integration = :integration AND (:space IS NULL OR space = :space) AND (space, piece_id) > (:after_space, :after_id)
ORDER BY space, piece_id LIMIT :limit

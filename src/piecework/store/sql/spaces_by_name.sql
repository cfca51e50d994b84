-- Spaces by name.
SELECT {columns} FROM spaces WHERE space IN (:spaces)

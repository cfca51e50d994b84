-- Spaces in which something is due, in the order of their names.
SELECT {columns} FROM spaces WHERE space > :after AND next_due IS NOT NULL AND next_due <= :now ORDER BY space LIMIT :limit

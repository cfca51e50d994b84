-- Spaces in which something is due.
SELECT {columns} FROM spaces WHERE next_due IS NOT NULL AND next_due <= :now ORDER BY next_due LIMIT :limit

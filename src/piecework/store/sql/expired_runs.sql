-- Paused runs whose deadline has passed.
SELECT {columns} FROM runs WHERE expires_at IS NOT NULL AND expires_at <= :now ORDER BY expires_at LIMIT :limit

-- Occurrences that may come again.
SELECT occurrence FROM occurrences WHERE created_at < :before ORDER BY occurrence LIMIT :limit

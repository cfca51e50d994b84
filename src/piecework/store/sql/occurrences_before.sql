-- Occurrences that may come again: those whose run has ended.
SELECT occurrence FROM occurrences WHERE created_at < :before AND NOT EXISTS
    (SELECT 1 FROM runs WHERE runs.run_id = occurrences.run_id AND runs.ended_at IS NULL)
ORDER BY occurrence LIMIT :limit

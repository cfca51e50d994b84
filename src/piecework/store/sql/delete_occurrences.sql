-- Lets occurrences come again; one that has come again meanwhile stays.
DELETE FROM occurrences WHERE occurrence IN (:keys) AND created_at < :before

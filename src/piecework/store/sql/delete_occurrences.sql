-- Lets occurrences come again.
DELETE FROM occurrences WHERE occurrence IN (:keys)

-- Which runs occurrences became.
SELECT {columns} FROM occurrences WHERE occurrence IN (:keys)

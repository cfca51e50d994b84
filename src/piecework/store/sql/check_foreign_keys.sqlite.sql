-- What SQLite itself finds wrong with references between tables.
SELECT "table" AS subject, 'row ' || coalesce(rowid, '?') || ' refers to nothing in ' || "parent" AS message
FROM pragma_foreign_key_check
LIMIT :limit

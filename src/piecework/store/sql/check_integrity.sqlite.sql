-- What SQLite itself finds wrong with its pages and indexes.
SELECT 'file' AS subject, integrity_check AS message FROM pragma_integrity_check(:limit) WHERE integrity_check <> 'ok'

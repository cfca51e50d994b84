-- Events from transactions of others, the oldest first.
SELECT {columns} FROM event_inbox WHERE inbox_seq > :after ORDER BY inbox_seq LIMIT :limit

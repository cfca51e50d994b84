-- Events by their ids.
SELECT {columns} FROM events WHERE event_id IN (:ids)

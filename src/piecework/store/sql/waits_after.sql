-- Waits under one probe, behind one that was looked at.
SELECT {columns} FROM waits WHERE probe = :probe AND wait_id > :after ORDER BY wait_id LIMIT :limit

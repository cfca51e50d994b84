-- Forgets single registrations.
DELETE FROM waits WHERE wait_id IN (:wait_ids)

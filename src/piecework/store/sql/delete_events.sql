-- Removes events.
DELETE FROM events WHERE seq IN (:seqs)

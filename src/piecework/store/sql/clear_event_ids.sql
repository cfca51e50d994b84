-- Lets event ids come again.
UPDATE events SET event_id = NULL WHERE seq IN (:seqs)

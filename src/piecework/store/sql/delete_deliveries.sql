-- Removes what became of events.
DELETE FROM deliveries WHERE event_seq IN (:seqs)

-- Events by their order of acceptance.
SELECT {columns} FROM events WHERE seq IN (:seqs)

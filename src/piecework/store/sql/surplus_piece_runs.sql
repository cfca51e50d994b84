-- Ended updates of a piece beyond its history: the oldest ones, and uneventful ones beyond their own limit.
SELECT run_id FROM (
    SELECT run_id,
           row_number() OVER (ORDER BY created_at DESC, run_id DESC) AS place,
           row_number() OVER (PARTITION BY outcome = 'skipped' ORDER BY created_at DESC, run_id DESC) AS place_of_its_kind,
           outcome = 'skipped' AS uneventful
    FROM runs WHERE kind = 'piece' AND space = :space AND key_value = :piece_id AND cleaned = 1
) AS updates
WHERE place > :history_limit OR (uneventful AND place_of_its_kind > :skipped_limit)

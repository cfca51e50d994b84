-- Pieces that are overdue, and those whose last update lies in the future; those that have waited longest come first.
SELECT {p.columns} FROM pieces p JOIN runs r ON r.run_id = p.run_id
WHERE p.next_run_at IS NOT NULL AND r.owner IS NULL AND r.status = 'queued' AND r.due_at = p.next_run_at
  AND (p.next_run_at <= :now OR coalesce(p.last_run_at, p.created_at) > :now)
ORDER BY coalesce(p.last_run_at, 0), p.next_run_at, p.space, p.piece_id

-- Digests whose last notification is not there, or is not the last.
SELECT d.digest_id AS subject, 'its last notification should be ' || d.last_id AS message
FROM digests d
LEFT JOIN (SELECT digest_id, max(seq) AS seq FROM notifications GROUP BY digest_id) AS newest ON newest.digest_id = d.digest_id
LEFT JOIN notifications n ON n.seq = newest.seq
WHERE n.notification_id IS NULL OR n.notification_id <> d.last_id
LIMIT :limit

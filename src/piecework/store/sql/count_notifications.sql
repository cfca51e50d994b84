-- How much a digest is to tell: how many different notifications, and how many in all.
SELECT count(DISTINCT alike), count(*) FROM notifications WHERE digest_id = :digest_id

-- A data base in a file: inserts in transactions, indexes, joins, groups, text search, updates, deletes.
PRAGMA journal_mode = DELETE;
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price INTEGER, shelf INTEGER);
CREATE TABLE sale (id INTEGER PRIMARY KEY, item INTEGER REFERENCES item, amount INTEGER, day TEXT);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000)
INSERT INTO item SELECT i, 'item ' || (i * 7919 % 8009), i * 31 % 997, i % 40 FROM n;
COMMIT;
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
INSERT INTO sale SELECT i, i * 613 % 8000 + 1, i % 9 + 1, date('2020-01-01', '+' || (i % 700) || ' days') FROM n;
COMMIT;
CREATE INDEX item_name ON item (name);
CREATE INDEX sale_item ON sale (item);
CREATE INDEX sale_day ON sale (day, amount);
SELECT shelf, count(*), sum(amount * price) FROM sale JOIN item ON item.id = sale.item GROUP BY shelf ORDER BY 3 DESC LIMIT 5;
SELECT substr(day, 1, 7) AS month, sum(amount), count(DISTINCT item) FROM sale GROUP BY month ORDER BY month LIMIT 6;
SELECT count(*) FROM item WHERE name LIKE '%77%';
SELECT name, (SELECT sum(amount) FROM sale WHERE sale.item = item.id) AS sold FROM item ORDER BY sold DESC, name LIMIT 5;
BEGIN;
UPDATE item SET price = price + (SELECT count(*) FROM sale WHERE sale.item = item.id);
DELETE FROM sale WHERE id % 3 = 0;
COMMIT;
SELECT sum(price), (SELECT count(*) FROM sale), (SELECT max(day) FROM sale) FROM item;
PRAGMA integrity_check;

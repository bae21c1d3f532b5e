# Texts that a reader must refuse or stop. One a block, blocks are divided by a line of three dashes.
# The first line of a block says what is expected:
#   refused  the check or the parser says no
#   stopped  a SELECT that is allowed, and that the deadline, the bound of rows or bytes, or the memory limit ends
# {db} is the path of the database file, {dir} a folder with secret.csv, secret.parquet and secret.json.
# \0 stands for a null byte. A line `-- generate: KIND N` stands for a text that the test makes:
#   nest      SELECT ((( … 1 … )))               N pairs of parentheses
#   not       SELECT NOT NOT NOT … true              N times
#   calls     SELECT abs(abs( … 1 … ))           N calls
#   selects   SELECT (SELECT (SELECT … 1))       N subqueries
#   long      SELECT 'aaa…'                      N letters
#   comment   SELECT 1 -- aaa…                   N letters
#   union     SELECT 1 UNION ALL SELECT 1 …      N selects
#   ctes      WITH a0 AS (SELECT 1), a1 AS (SELECT * FROM a0), … SELECT * FROM a<N-1>
#   withs     WITH a AS (WITH a AS ( … SELECT 1 … ) SELECT * FROM a) SELECT * FROM a     N deep
#   joins     SELECT count(*) FROM sources a0 JOIN sources a1 USING (source_no) …        N tables
#   lambdas   SELECT list_transform([1], lambda x: list_transform([1], lambda x: … 1))   N deep
#   types     SELECT NULL::STRUCT(a STRUCT(a … INT))                                     N deep
---
-- expect: refused
SELECT 1; SELECT 2
---
-- expect: refused
SELECT 1; COMMIT; DROP TABLE sources
---
-- expect: refused
SELECT 1; ROLLBACK; INSERT INTO sources SELECT * FROM sources
---
-- expect: refused
SELECT 1\0; DROP TABLE sources
---
-- expect: refused
COMMIT; DROP TABLE sources; BEGIN TRANSACTION; SELECT 1
---
-- expect: refused
BEGIN TRANSACTION
---
-- expect: refused
COMMIT
---
-- expect: refused
ROLLBACK
---
-- expect: refused
COPY features_table TO '{dir}/out.csv'
---
-- expect: refused
COPY (SELECT 1) TO '{db}'
---
-- expect: refused
COPY (SELECT 1) TO '{db}.wal'
---
-- expect: refused
COPY sources FROM '{dir}/secret.csv'
---
-- expect: refused
COPY FROM DATABASE memory TO system
---
-- expect: refused
EXPORT DATABASE '{dir}/export'
---
-- expect: refused
IMPORT DATABASE '{dir}/export'
---
-- expect: refused
ATTACH ':memory:' AS other
---
-- expect: refused
ATTACH '{db}' AS again (READ_ONLY)
---
-- expect: refused
DETACH system
---
-- expect: refused
USE system
---
-- expect: refused
PRAGMA database_list
---
-- expect: refused
PRAGMA table_info('sources')
---
-- expect: refused
PRAGMA enable_profiling
---
-- expect: refused
SET memory_limit = '100GB'
---
-- expect: refused
SET VARIABLE v = 1
---
-- expect: refused
RESET memory_limit
---
-- expect: refused
SET lock_configuration = false
---
-- expect: refused
INSTALL httpfs
---
-- expect: refused
LOAD httpfs
---
-- expect: refused
CALL pragma_version()
---
-- expect: refused
CALL enable_logging()
---
-- expect: refused
CALL force_checkpoint()
---
-- expect: refused
CHECKPOINT
---
-- expect: refused
FORCE CHECKPOINT
---
-- expect: refused
VACUUM
---
-- expect: refused
ANALYZE
---
-- expect: refused
EXPLAIN SELECT 1
---
-- expect: refused
EXPLAIN ANALYZE DELETE FROM sources
---
-- expect: refused
EXPLAIN ANALYZE INSERT INTO sources SELECT * FROM sources
---
-- expect: refused
PREPARE p AS DELETE FROM sources
---
-- expect: refused
EXECUTE p
---
-- expect: refused
DEALLOCATE p
---
-- expect: refused
CREATE TABLE t AS SELECT 1 AS a
---
-- expect: refused
CREATE TEMP TABLE sources AS SELECT 1 AS a
---
-- expect: refused
CREATE OR REPLACE TEMP VIEW features_table AS SELECT 1 AS a
---
-- expect: refused
CREATE MACRO upper(x) AS 'x'
---
-- expect: refused
CREATE SECRET s (TYPE S3, KEY_ID 'a', SECRET 'b')
---
-- expect: refused
DROP TABLE sources
---
-- expect: refused
TRUNCATE sources
---
-- expect: refused
ALTER TABLE sources ADD COLUMN x INTEGER
---
-- expect: refused
INSERT INTO sources SELECT * FROM sources RETURNING *
---
-- expect: refused
UPDATE sources SET owner = 'me' RETURNING *
---
-- expect: refused
DELETE FROM sources RETURNING *
---
-- expect: refused
MERGE INTO sources USING (SELECT 1 AS n) s ON sources.source_no = s.n WHEN MATCHED THEN DELETE
---
-- expect: refused
WITH gone AS (DELETE FROM sources RETURNING *) SELECT * FROM gone
---
-- expect: refused
WITH new AS (INSERT INTO sources SELECT * FROM sources RETURNING *) SELECT * FROM new
---
-- expect: refused
WITH s AS (SELECT 1 AS n) DELETE FROM sources
---
-- expect: refused
WITH s AS (SELECT 1 AS n) UPDATE sources SET owner = 'me' FROM s WHERE source_no = s.n
---
-- expect: refused
SELECT 1 AS a INTO t
---
-- expect: refused
SELECT * FROM read_csv('{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM read_csv_auto(['{dir}/secret.csv'])
---
-- expect: refused
SELECT * FROM READ_CSV('{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM "read_csv"('{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM main.read_csv('{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM system.main.read_text('{dir}/secret.csv')
---
-- expect: refused
SELECT content FROM read_text('{dir}/secret.csv')
---
-- expect: refused
SELECT content FROM read_blob('{db}')
---
-- expect: refused
SELECT size FROM read_blob(['{db}', '{db}.wal'])
---
-- expect: refused
SELECT * FROM read_json('{dir}/secret.json')
---
-- expect: refused
SELECT * FROM read_ndjson_objects('{dir}/secret.json')
---
-- expect: refused
SELECT * FROM read_parquet('{dir}/secret.parquet')
---
-- expect: refused
SELECT * FROM parquet_scan('{dir}/secret.parquet')
---
-- expect: refused
SELECT * FROM parquet_metadata('{dir}/secret.parquet')
---
-- expect: refused
SELECT * FROM parquet_schema('{dir}/secret.parquet')
---
-- expect: refused
SELECT * FROM parquet_kv_metadata('{dir}/secret.parquet')
---
-- expect: refused
SELECT * FROM sniff_csv('{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM glob('{dir}/*')
---
-- expect: refused
SELECT * FROM read_duckdb('{db}', table_name = 'sources')
---
-- expect: refused
SELECT * FROM '{dir}/secret.csv'
---
-- expect: refused
FROM '{dir}/secret.parquet'
---
-- expect: refused
TABLE "{dir}/secret.csv"
---
-- expect: refused
SELECT * FROM "{dir}/secret.parquet"
---
-- expect: refused
SELECT * FROM "{dir}/secret".parquet
---
-- expect: refused
SELECT * FROM a."{dir}/secret".parquet
---
-- expect: refused
SELECT * FROM '{dir}/*.csv'
---
-- expect: refused
SELECT * FROM '{db}'
---
-- expect: refused
WITH "{dir}/secret.csv" AS (SELECT 1) SELECT * FROM (SELECT 1), "{dir}/secret.csv"
---
-- expect: refused
SELECT * FROM (WITH "{dir}/secret.csv" AS (SELECT 1) SELECT 1), "{dir}/secret.csv"
---
-- expect: refused
SELECT * FROM (WITH parquet AS (SELECT 1) SELECT 1), "{dir}/secret".parquet
---
-- expect: refused
WITH sources AS (FROM '{dir}/secret.csv') SELECT * FROM sources
---
-- expect: refused
WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r, '{dir}/secret.csv' WHERE n < 2) SELECT * FROM r
---
-- expect: refused
WITH RECURSIVE r(a, b) USING KEY (a) AS (SELECT 1, (SELECT count(*) FROM '{dir}/secret.csv') UNION SELECT a, b + 1 FROM r WHERE b < 9) SELECT * FROM r
---
-- expect: refused
SELECT (SELECT count(*) FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT 1 WHERE EXISTS (FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT 1 IN (SELECT 1 FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT ARRAY(SELECT column0 FROM read_csv('{dir}/secret.csv', header = false))
---
-- expect: refused
SELECT * FROM sources LIMIT (SELECT count(*) FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM sources OFFSET (SELECT count(*) FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM sources ORDER BY (SELECT count(*) FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT source FROM sources GROUP BY source, (SELECT count(*) FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT source FROM sources GROUP BY source HAVING count(*) < (SELECT count(*) FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM sources QUALIFY row_number() OVER (ORDER BY source) < (SELECT count(*) FROM '{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM '{dir}/secret.csv' USING SAMPLE 1
---
-- expect: refused
SELECT * FROM '{dir}/secret.csv' TABLESAMPLE 1 ROWS
---
-- expect: refused
SELECT sum(next_pos) FILTER (WHERE EXISTS (FROM '{dir}/secret.csv')) FROM sources
---
-- expect: refused
SELECT sum(next_pos) OVER (ORDER BY (SELECT count(*) FROM '{dir}/secret.csv')) FROM sources
---
-- expect: refused
SELECT list_transform([1], lambda x: (SELECT count(*) FROM '{dir}/secret.csv'))
---
-- expect: refused
SELECT CASE WHEN true THEN (SELECT count(*) FROM '{dir}/secret.csv') END
---
-- expect: refused
SELECT try((SELECT count(*) FROM '{dir}/secret.csv'))
---
-- expect: refused
SELECT * REPLACE ((SELECT count(*) FROM '{dir}/secret.csv') AS owner) FROM sources
---
-- expect: refused
VALUES ((SELECT count(*) FROM '{dir}/secret.csv'))
---
-- expect: refused
SELECT * FROM range((SELECT count(*) FROM '{dir}/secret.csv'))
---
-- expect: refused
SELECT * FROM sources, LATERAL (SELECT * FROM '{dir}/secret.csv') t
---
-- expect: refused
SELECT * FROM sources ASOF JOIN '{dir}/secret.csv' t ON sources.next_pos >= t.a
---
-- expect: refused
SELECT * FROM sources POSITIONAL JOIN '{dir}/secret.csv'
---
-- expect: refused
SELECT 1 UNION ALL SELECT count(*) FROM '{dir}/secret.csv'
---
-- expect: refused
PIVOT '{dir}/secret.csv' ON a IN (1) USING count(*)
---
-- expect: refused
PIVOT sources ON source IN ('a') USING max((SELECT count(*) FROM '{dir}/secret.csv'))
---
-- expect: refused
PIVOT sources ON source IN (SELECT b FROM '{dir}/secret.csv') USING count(*)
---
-- expect: refused
PIVOT features_table ON feature_name USING sum(value)
---
-- expect: refused
UNPIVOT '{dir}/secret.csv' ON a
---
-- expect: refused
DESCRIBE '{dir}/secret.csv'
---
-- expect: refused
DESCRIBE SELECT * FROM read_csv('{dir}/secret.csv')
---
-- expect: refused
SHOW '{dir}/secret.csv'
---
-- expect: refused
SUMMARIZE '{dir}/secret.csv'
---
-- expect: refused
SUMMARIZE SELECT * FROM '{dir}/secret.parquet'
---
-- expect: refused
SELECT * FROM (SUMMARIZE '{dir}/secret.csv')
---
-- expect: refused
SELECT/**/*/**/FROM/**/'{dir}/secret.csv' -- sources
---
-- expect: refused
SELECT * FROM /* sources */ read_text/* range */('{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM U&"{dir}/secret.csv"
---
-- expect: refused
SHOW TABLES
---
-- expect: refused
SHOW ALL TABLES
---
-- expect: refused
SHOW DATABASES
---
-- expect: refused
SHOW SCHEMAS
---
-- expect: refused
SHOW VARIABLES
---
-- expect: refused
SHOW TABLES FROM system
---
-- expect: refused
DESCRIBE
---
-- expect: refused
SELECT * FROM (SHOW ALL TABLES)
---
-- expect: refused
SELECT * FROM query('SELECT * FROM duckdb_settings()')
---
-- expect: refused
SELECT * FROM query_table('{dir}/secret.csv')
---
-- expect: refused
SELECT * FROM query_table(['sources', 'store_identity'])
---
-- expect: refused
SELECT * FROM store_identity
---
-- expect: refused
SELECT * FROM duckdb_settings()
---
-- expect: refused
SELECT * FROM duckdb_tables()
---
-- expect: refused
SELECT * FROM duckdb_tables
---
-- expect: refused
SELECT * FROM duckdb_secrets()
---
-- expect: refused
SELECT * FROM duckdb_logs
---
-- expect: refused
SELECT * FROM duckdb_memory()
---
-- expect: refused
SELECT * FROM duckdb_temporary_files()
---
-- expect: refused
SELECT * FROM pragma_storage_info('sources')
---
-- expect: refused
SELECT * FROM pragma_table_info('sources')
---
-- expect: refused
SELECT * FROM pragma_database_size()
---
-- expect: refused
SELECT * FROM information_schema.tables
---
-- expect: refused
SELECT * FROM system.information_schema.columns
---
-- expect: refused
SELECT * FROM pg_catalog.pg_class
---
-- expect: refused
SELECT * FROM sqlite_master
---
-- expect: refused
SELECT * FROM which_secret('s3://a', 's3')
---
-- expect: refused
SELECT * FROM force_checkpoint()
---
-- expect: refused
SELECT * FROM enable_logging()
---
-- expect: refused
SELECT * FROM truncate_duckdb_logs()
---
-- expect: refused
SELECT * FROM enable_profiling()
---
-- expect: refused
SELECT * FROM seq_scan('sources')
---
-- expect: refused
SELECT * FROM test_all_types()
---
-- expect: refused
SELECT * FROM repeat('a', 1000000000000)
---
-- expect: refused
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM duckdb_settings()'))
---
-- expect: refused
SELECT json_serialize_plan('SELECT * FROM ''{dir}/secret.csv''')
---
-- expect: refused
SELECT json_serialize_sql('SELECT 1')
---
-- expect: refused
SELECT nextval('source_numbers')
---
-- expect: refused
SELECT currval('source_numbers')
---
-- expect: refused
SELECT main.nextval('source_numbers')
---
-- expect: refused
SELECT system.main.nextval('source_numbers')
---
-- expect: refused
SELECT ('source_numbers').nextval()
---
-- expect: refused
SELECT "NEXTVAL"('source_numbers')
---
-- expect: refused
SELECT list_transform([1, 2], lambda x: nextval('source_numbers'))
---
-- expect: refused
SELECT [nextval('source_numbers') FOR x IN [1, 2]]
---
-- expect: refused
SELECT * FROM range(nextval('source_numbers'))
---
-- expect: refused
SELECT 1 ORDER BY nextval('source_numbers')
---
-- expect: refused
SELECT 1 LIMIT nextval('source_numbers')
---
-- expect: refused
SELECT * FROM sources QUALIFY nextval('source_numbers') > 0
---
-- expect: refused
SELECT count(*) FILTER (WHERE nextval('source_numbers') > 0) FROM sources
---
-- expect: refused
SELECT sum(1) OVER (PARTITION BY nextval('source_numbers')) FROM sources
---
-- expect: refused
SELECT count(*) FROM sources GROUP BY GROUPING SETS ((nextval('source_numbers')), ())
---
-- expect: refused
SELECT DISTINCT ON (nextval('source_numbers')) * FROM sources
---
-- expect: refused
SELECT COLUMNS(c -> nextval('source_numbers') > 0) FROM sources
---
-- expect: refused
SELECT getenv('HOME')
---
-- expect: refused
SELECT system.main.getenv('HOME')
---
-- expect: refused
SELECT current_setting('temp_directory')
---
-- expect: refused
SELECT ('temp_directory').current_setting()
---
-- expect: refused
SELECT getvariable('v')
---
-- expect: refused
SELECT write_log('forged', level := 'error')
---
-- expect: refused
SELECT setseed(0.5)
---
-- expect: refused
SELECT sleep_ms(60000)
---
-- expect: refused
SELECT pg_sleep(60)
---
-- expect: refused
SELECT current_database(), current_schemas(true), current_query()
---
-- expect: refused
SELECT version()
---
-- expect: refused
SELECT txid_current()
---
-- expect: refused
SELECT pg_get_viewdef(0)
---
-- expect: refused
SELECT stats(owner) FROM sources
---
-- expect: refused
SELECT length(repeat('a', 1000000000))
---
-- expect: refused
SELECT sum(length(repeat(entity_id, 1000000))) FROM features_table
---
-- expect: refused
SELECT length(rpad('a', 1000000000, 'x'))
---
-- expect: refused
SELECT length(lpad('a', 1000000000, 'x'))
---
-- expect: refused
SELECT length(printf('%1000000000d', 1))
---
-- expect: refused
SELECT length(format('{:1000000000}', 1))
---
-- expect: refused
SELECT bit_length(bitstring('1', 2000000000))
---
-- expect: refused
SELECT len(list_resize([1], 1000000000))
---
-- expect: refused
SELECT len(range(1000000000))
---
-- expect: refused
SELECT count(*) FROM (SELECT unnest(generate_series(1, 1000000000)))
---
-- expect: refused
SELECT levenshtein(x, x) FROM (SELECT string_agg('a', '') AS x FROM range(200000))
---
-- expect: refused
SELECT jaro_similarity(x, x) FROM (SELECT string_agg('a', '') AS x FROM range(300000))
---
-- expect: refused
SELECT 1 AS
---
-- expect: refused
SELECT 'open
---
-- expect: refused
SELECT 1 /* open
---
-- expect: refused
SELECT 1) , (SELECT 2
---
-- expect: refused
-- nothing
---
-- expect: refused
;
---
-- expect: refused
ＳＥＬＥＣＴ 1
---
-- expect: refused
-- generate: nest 20000
---
-- expect: refused
-- generate: not 5000
---
-- expect: refused
-- generate: calls 900
---
-- expect: refused
-- generate: selects 5000
---
-- expect: refused
-- generate: long 2000000
---
-- expect: refused
-- generate: comment 2000000
---
-- expect: refused
-- generate: union 5000
---
-- expect: refused
-- generate: ctes 900
---
-- expect: refused
-- generate: ctes 5000
---
-- expect: refused
-- generate: withs 900
---
-- expect: refused
-- generate: joins 120
---
-- expect: refused
-- generate: lambdas 30
---
-- expect: refused
-- generate: types 900
---
-- expect: refused
SELECT * FROM (WITH store_identity AS (SELECT 1) SELECT 1) x, store_identity
---
-- expect: refused
SELECT * FROM (WITH duckdb_tables AS (SELECT 1) SELECT 1) x, duckdb_tables
---
-- expect: refused
WITH a AS (SELECT * FROM store_identity), store_identity AS (SELECT 1) SELECT * FROM a
---
-- expect: refused
WITH sqlite_master AS (SELECT * FROM sqlite_master) SELECT * FROM sqlite_master
---
-- expect: stopped
SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range * b.range = 7
---
-- expect: stopped
SELECT count(*) FROM features_table a, features_table b, features_table c, features_table d, features_table e WHERE a.value + b.value + c.value + d.value + e.value = 0.1
---
-- expect: stopped
SELECT count(*) FROM range(1000000000000000)
---
-- expect: stopped
SELECT * FROM range(1000000000000000)
---
-- expect: stopped
SELECT * FROM generate_series(1, 1000000000000000)
---
-- expect: stopped
SELECT a.range, md5(b.range::VARCHAR) FROM range(100000) a, range(100000) b
---
-- expect: stopped
SELECT f.* FROM features_table f, range(1000000000)
---
-- expect: stopped
SELECT string_agg('0123456789', '') FROM range(10000000)
---
-- expect: stopped
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) SELECT count(*) FROM r
---
-- expect: stopped
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT * FROM r
---
-- expect: stopped
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r, range(2)) SELECT count(*) FROM r
---
-- expect: stopped
WITH RECURSIVE r(n) AS (SELECT 1 UNION SELECT n + 1 FROM r) SELECT max(n) FROM r
---
-- expect: stopped
WITH RECURSIVE r(a, b) USING KEY (a) AS (SELECT 1, 1 UNION SELECT a, b + 1 FROM r) SELECT * FROM r
---
-- expect: stopped
WITH RECURSIVE r(s) AS (SELECT 'aaaaaaaa' UNION ALL SELECT s || s FROM r) SELECT max(length(s)) FROM r
---
-- expect: stopped
SELECT * FROM features_table, range(100000000) t(i) ORDER BY hash(i)
---
-- expect: stopped
SELECT DISTINCT a.range, b.range FROM range(100000) a, range(100000) b
---
-- expect: stopped
SELECT count(*) FROM (SELECT DISTINCT a.range * 100000 + b.range FROM range(100000) a, range(100000) b)
---
-- expect: stopped
SELECT a.range % 10000000, count(*) FROM range(100000) a, range(100000) b GROUP BY a.range * 100000 + b.range, a.range
---
-- expect: stopped
SELECT len(list(a.range)) FROM range(100000) a, range(100000) b
---
-- expect: stopped
SELECT cardinality(histogram(a.range * 100000 + b.range)) FROM range(100000) a, range(100000) b
---
-- expect: stopped
SELECT length(string_agg(a.range::VARCHAR, ',')) FROM range(100000) a, range(100000) b
---
-- expect: stopped
SELECT quantile_cont(a.range * b.range, 0.5) FROM range(100000) a, range(100000) b
---
-- expect: stopped
SELECT sum(a.range) OVER (ORDER BY hash(a.range, b.range)) FROM range(100000) a, range(100000) b
---
-- expect: stopped
SELECT count(*) FROM range(10000000) a JOIN range(10000000) b ON a.range < b.range AND a.range % 7 <> b.range % 11
---
-- expect: stopped
SELECT count(*) FROM range(100000) a, range(100000) b WHERE regexp_matches(a.range::VARCHAR || b.range::VARCHAR, '(0|1|2|3|4|5|6|7|8)*(a|b)+$')
---
-- expect: stopped
SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE sha256(a.range::VARCHAR || b.range::VARCHAR) LIKE '0000000000%'
---
-- expect: stopped
SELECT unnest(l) FROM (SELECT list(range) AS l FROM range(1000000)), range(1000000)

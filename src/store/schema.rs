//! The tables. No primary key, no UNIQUE, no index: DuckDB's indexes cost 4–8× on append and have
//! corrupted on WAL replay. Uniqueness is the protocol's, and the audit proves it.

use duckdb::Connection;

/// Creates what is missing, also in a file of an earlier version.
///
/// # Errors
/// DuckDB's word.
pub fn create(connection: &Connection) -> duckdb::Result<()> {
    // Earlier versions had a table of other columns under this name, and never a row in it.
    let other: i64 = connection.query_row(
        "SELECT count(*) FROM duckdb_columns()
         WHERE database_name = current_database() AND table_name = 'uploads' AND column_name = 'state'",
        [],
        |row| row.get(0),
    )?;
    if other > 0 {
        connection.execute_batch("DROP TABLE uploads")?;
    }
    connection.execute_batch(DDL)
}

/// Creates what is missing.
pub const DDL: &str = "
CREATE SEQUENCE IF NOT EXISTS source_numbers START 1;

-- One row a source; the row with the greatest source_no is the current one of its name.
CREATE TABLE IF NOT EXISTS sources (
    source_no   INTEGER NOT NULL,
    source      VARCHAR NOT NULL,
    token       UUID NOT NULL,
    token_no    INTEGER NOT NULL,
    owner       VARCHAR NOT NULL,
    next_pos    BIGINT NOT NULL,
    start_pos   BIGINT NOT NULL,
    cluster_id  VARCHAR,
    topic_id    VARCHAR,
    updated_at  TIMESTAMPTZ NOT NULL,
    -- Partitions of the topic when the source was first opened.
    topic_partitions INTEGER,
    -- Why it must not be read, whatever the broker says.
    halted      VARCHAR,
    -- What an operator has decided, until the next open carries it out.
    adopt       VARCHAR
);
-- Files of earlier versions.
ALTER TABLE sources ADD COLUMN IF NOT EXISTS topic_partitions INTEGER;
ALTER TABLE sources ADD COLUMN IF NOT EXISTS halted VARCHAR;
ALTER TABLE sources ADD COLUMN IF NOT EXISTS adopt VARCHAR;

-- One row: the database's own name, so that a queue is never served from two databases.
CREATE TABLE IF NOT EXISTS store_identity (database_id UUID NOT NULL);
INSERT INTO store_identity SELECT uuid() WHERE NOT EXISTS (FROM store_identity);

-- One row a batch that was applied. n_in = n_kept + n_dead + n_filtered.
CREATE TABLE IF NOT EXISTS ingest_ledger (
    batch_seq     BIGINT NOT NULL,
    source_no     INTEGER NOT NULL,
    token_no      INTEGER NOT NULL,
    from_pos      BIGINT NOT NULL,
    to_pos        BIGINT NOT NULL,
    n_in          BIGINT NOT NULL,
    n_kept        BIGINT NOT NULL,
    n_dead        BIGINT NOT NULL,
    n_filtered    BIGINT NOT NULL,
    n_rows        BIGINT NOT NULL,
    transform     VARCHAR NOT NULL,
    script_sha256 VARCHAR NOT NULL,
    node          VARCHAR NOT NULL,
    committed_at  TIMESTAMPTZ NOT NULL
);

-- Every feature value ever, in the order of arrival. Times are UTC microseconds.
CREATE TABLE IF NOT EXISTS features_table (
    entity_id       VARCHAR NOT NULL,
    feature_name    VARCHAR NOT NULL,
    value           DOUBLE,
    event_timestamp TIMESTAMPTZ NOT NULL,
    created_at      TIMESTAMPTZ NOT NULL,
    event_id        UUID,
    available_at    TIMESTAMPTZ NOT NULL,
    batch_seq       BIGINT NOT NULL,
    source_no       INTEGER NOT NULL,
    pos             BIGINT NOT NULL,
    sub             INTEGER NOT NULL
);

-- Every bad record, with what is needed to mend it.
CREATE TABLE IF NOT EXISTS dead_letters (
    batch_seq     BIGINT NOT NULL,
    source_no     INTEGER NOT NULL,
    pos           BIGINT NOT NULL,
    event_id      UUID,
    entity_id     VARCHAR,
    stage         VARCHAR NOT NULL,
    reason        VARCHAR NOT NULL,
    detail        VARCHAR NOT NULL,
    raw           BLOB,
    raw_len       BIGINT,
    raw_sha256    VARCHAR,
    script_sha256 VARCHAR NOT NULL,
    stored_at     TIMESTAMPTZ NOT NULL,
    recorded_at   TIMESTAMPTZ
);
ALTER TABLE dead_letters ADD COLUMN IF NOT EXISTS recorded_at TIMESTAMPTZ;

-- One row a replay of dead letters. It is done when next_pos of its source is n_letters.
CREATE TABLE IF NOT EXISTS replays (
    replay_id     VARCHAR NOT NULL,
    source        VARCHAR NOT NULL,
    stream        VARCHAR NOT NULL,
    owner         VARCHAR NOT NULL,
    n_letters     BIGINT NOT NULL,
    registered_at TIMESTAMPTZ NOT NULL
);

-- One row a letter of a replay, fixed before its first event is sent. The letter is resolved once
-- next_pos of the replay's source has passed its place. payload: the whole record, where the letter
-- has kept only a part of it.
CREATE TABLE IF NOT EXISTS dead_letter_replays (
    source_no   INTEGER NOT NULL,
    pos         BIGINT NOT NULL,
    replay_id   VARCHAR NOT NULL,
    replayed_at TIMESTAMPTZ NOT NULL,
    place       BIGINT,
    payload     BLOB,
    recorded_at TIMESTAMPTZ
);
ALTER TABLE dead_letter_replays ADD COLUMN IF NOT EXISTS place BIGINT;
ALTER TABLE dead_letter_replays ADD COLUMN IF NOT EXISTS payload BLOB;
ALTER TABLE dead_letter_replays ADD COLUMN IF NOT EXISTS recorded_at TIMESTAMPTZ;

-- Every script version that was ever tried, with its text and its helper modules (JSON). Ledger
-- lines and dead letters name it.
CREATE TABLE IF NOT EXISTS transform_versions (
    script_sha256 VARCHAR NOT NULL,
    name          VARCHAR NOT NULL,
    source        VARCHAR NOT NULL,
    modules       VARCHAR NOT NULL,
    node          VARCHAR NOT NULL,
    first_seen_at TIMESTAMPTZ NOT NULL
);

-- What happened to each stream's script, in order; which version is active follows from it, see
-- protocol/script_history.rs. from_sha256: the version that was active. params, trial: JSON.
CREATE TABLE IF NOT EXISTS transform_history (
    seq           BIGINT NOT NULL,
    note_id       VARCHAR NOT NULL,
    stream        VARCHAR NOT NULL,
    action        VARCHAR NOT NULL,
    script_sha256 VARCHAR NOT NULL,
    from_sha256   VARCHAR,
    reason        VARCHAR NOT NULL,
    params        VARCHAR,
    trial         VARCHAR,
    node          VARCHAR NOT NULL,
    noted_at      TIMESTAMPTZ NOT NULL
);

-- One row an upload: a file whose rows are the positions [0, rows) of its source. It has landed when
-- next_pos of its source is rows. owner: the node that has the file.
CREATE TABLE IF NOT EXISTS uploads (
    upload_id       VARCHAR NOT NULL,
    idempotency_key VARCHAR NOT NULL,
    sha256          VARCHAR NOT NULL,
    stream          VARCHAR NOT NULL,
    source          VARCHAR NOT NULL,
    owner           VARCHAR NOT NULL,
    filename        VARCHAR NOT NULL,
    format          VARCHAR NOT NULL,
    compression     VARCHAR NOT NULL,
    size            BIGINT NOT NULL,
    rows            BIGINT NOT NULL,
    registered_at   TIMESTAMPTZ NOT NULL
);

-- One row an opening of the file by a store.
CREATE TABLE IF NOT EXISTS service_meta (
    service_epoch        BIGINT NOT NULL,
    host                 VARCHAR NOT NULL,
    pid                  INTEGER NOT NULL,
    opened_at            TIMESTAMPTZ NOT NULL,
    clean_shutdown       BOOLEAN NOT NULL,
    audited_to_batch_seq BIGINT NOT NULL
);
";

/// The tables that a client may read.
pub const READABLE_TABLES: [&str; 10] = [
    "sources",
    "ingest_ledger",
    "features_table",
    "dead_letters",
    "replays",
    "dead_letter_replays",
    "transform_versions",
    "transform_history",
    "uploads",
    "service_meta",
];

//! One table in every format.

use super::{bench, python, upload_by_command};

/// Rows of each file.
const ROWS: u64 = 100_000;

/// Writes the same rows in every format, with the libraries that people use for that.
const MAKE: &str = r#"
import csv, gzip, json, sys
import pyarrow as pa, pyarrow.parquet as pq, polars as pl
from datetime import datetime, timedelta, timezone
folder, n = "FOLDER", ROWS
zero = datetime(2026, 1, 1, tzinfo=timezone.utc)
names = ["clicks_1d", "spend 30d", 'quo"ted', "komma,und", "größe", "日本"]
rows = []
for i in range(n):
    at = zero + timedelta(seconds=i * 7, microseconds=i % 1000)
    rows.append(dict(
        entity_id=f"user-{i % 1000}", feature_name=names[i % len(names)],
        value=None if i % 50 == 0 else (i - 5000) / 8, validated_at=at,
        created_at=at + timedelta(seconds=1),
        event_id=f"00000000-0000-4000-8000-{i:012d}"))
def text(row):
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()}
texts = [text(row) for row in rows]
with open(f"{folder}/a.json", "w") as f: json.dump(texts, f, indent=1, ensure_ascii=False)
with open(f"{folder}/b.ndjson", "w") as f:
    for row in texts: f.write(json.dumps(row) + "\n")
with open(f"{folder}/c.csv", "w", newline="") as f:
    writer = csv.DictWriter(f, list(texts[0])); writer.writeheader(); writer.writerows(texts)
table = pa.Table.from_pylist(rows, schema=pa.schema([
    ("entity_id", pa.string()), ("feature_name", pa.dictionary(pa.int32(), pa.string())),
    ("value", pa.float64()), ("validated_at", pa.timestamp("us", "UTC")),
    ("created_at", pa.timestamp("ns", "UTC")), ("event_id", pa.string())]))
pq.write_table(table, f"{folder}/d.parquet", row_group_size=30_000)
pl.from_arrow(table).with_columns(pl.col("feature_name").cast(pl.String)).write_parquet(f"{folder}/e.parquet")
for name in ["a.json", "b.ndjson", "c.csv", "d.parquet"]:
    data = open(f"{folder}/{name}", "rb").read()
    with gzip.open(f"{folder}/{name}.gz", "wb", 1) as f: f.write(data)
    with pa.CompressedOutputStream(f"{folder}/{name}.zst", "zstd") as f: f.write(data)
"#;

#[test]
fn the_same_rows_give_the_same_table_in_every_format_and_compression() {
    let bench = bench();
    let folder = bench.dir.path().join("files");
    std::fs::create_dir_all(&folder).unwrap();
    let program = MAKE.replace("FOLDER", folder.to_str().unwrap());
    python(&bench, &program.replace("ROWS", &ROWS.to_string()));
    let node = bench.node("process,store");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 13);
    for file in &files {
        let receipt = upload_by_command(&node, file, &["--stream", "features"]);
        let name = file.file_name().unwrap();
        assert_eq!(receipt["state"], "landed", "{name:?}: {receipt}");
        assert_eq!(
            (&receipt["rows"], &receipt["dead_letters"], &receipt["duplicate"]),
            (&ROWS.into(), &0.into(), &false.into()),
            "{name:?}: {receipt}"
        );
    }
    let sql = "SELECT filename, count(*)::BIGINT AS n,
                      bit_xor(hash(entity_id, feature_name, value, event_timestamp, created_at, event_id, pos, sub))::VARCHAR AS content
               FROM features_table JOIN sources USING (source_no) JOIN uploads USING (source)
               GROUP BY 1 ORDER BY 1";
    let tables = node.query(sql);
    let tables = tables.as_array().unwrap();
    assert_eq!(tables.len(), files.len());
    for table in tables {
        assert_eq!(
            (&table["n"], &table["content"]),
            (&ROWS.into(), &tables[0]["content"]),
            "{table} is not {}",
            tables[0]
        );
    }
    node.verify();
    node.stop_well();
    bench.judge_books();
}

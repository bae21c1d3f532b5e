//! A file is checked in a process of its own: what is hostile to that leaves the caller unharmed.

use millstream::{
    config::{Config, StreamConfig},
    files::{
        Checked, Compression, FileError, FileFormat, FileKind, FileLimits, check_in_child,
        hostile::{self, makers},
        reasons,
    },
};
use polars::prelude::{IntoColumn, NamedFrom, Series};
use std::path::Path;

const JSON: FileKind = FileKind { format: FileFormat::Json, compression: Compression::None };
const PARQUET: FileKind = FileKind { format: FileFormat::Parquet, ..JSON };

fn limits(check_memory_mib: u64) -> FileLimits {
    let limits = FileLimits::of(&Config::default());
    FileLimits { check_memory_bytes: check_memory_mib << 20, ..limits }
}

async fn checked(bytes: &[u8], kind: FileKind, limits: &FileLimits) -> Result<Checked, FileError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_millstream"));
    let stream = StreamConfig::shipped().remove(0);
    let verdict = check_in_child(program, &path, kind, &stream, limits).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no copy is left");
    verdict
}

#[tokio::test]
async fn every_hostile_file_gets_its_verdict_from_the_child() {
    for (name, kind, bytes, reason) in hostile::files() {
        let verdict = checked(&bytes, kind, &limits(512)).await;
        let found = verdict.as_ref().err().map(|error| error.reason.as_str());
        assert_eq!(found, reason, "{name}: {verdict:?}");
    }
}

#[tokio::test]
async fn a_sound_file_is_counted_in_little_memory() {
    let rows = makers::rows(20_000);
    for format in FileFormat::ALL {
        for compression in Compression::ALL {
            let kind = FileKind { format, compression };
            let verdict = checked(&makers::file(kind, &rows), kind, &limits(128)).await;
            assert_eq!(verdict.map(|checked| checked.rows), Ok(20_000), "{kind}");
        }
    }
}

/// One value of 150 MiB, which compresses well, within the other limits.
#[tokio::test]
async fn a_file_that_takes_too_much_memory_kills_the_child_alone() {
    let mut frame = makers::frame(&makers::rows(1));
    let text = ["x".repeat(150 << 20)];
    frame.replace("feature_name", Series::new("feature_name".into(), text).into_column()).unwrap();
    let bytes = makers::parquet(&mut frame, 10);
    let error = checked(&bytes, PARQUET, &limits(128)).await.unwrap_err();
    assert_eq!(error.reason, reasons::OUT_OF_MEMORY, "{error}");
    let error = checked(&bytes, PARQUET, &limits(2_048)).await.unwrap_err();
    assert_eq!(error.reason, reasons::ROW_TOO_LARGE, "{error}");
}

//! Every style in which a script may take its events, and how its annotation picks one.

use std::path::PathBuf;

use millstream::python::{Style, WorkerError, WorkerProcess, WorkerSpec};

use super::{DEADLINE, EVENT_IDENTITY, assert_identity, events, in_time, row_numbers};
use super::{alone, run, script, spec};

async fn style_of(source: &str) -> Result<Style, WorkerError> {
    let mut worker = in_time(WorkerProcess::spawn(&spec())).await.unwrap();
    let loaded = in_time(worker.load(&script(source), &events(0).schema())).await;
    in_time(worker.kill()).await;
    loaded.map(|loaded| loaded.style)
}

#[tokio::test]
async fn polars_in_and_out() {
    let source = "
import polars as pl
def transform(batch: pl.DataFrame) -> pl.DataFrame:
    assert isinstance(batch, pl.DataFrame), type(batch)
    assert batch.schema['event_timestamp'] == pl.Datetime('us', 'UTC')
    return batch.select('_row', 'entity_id', 'feature_name', 'value', 'event_timestamp')
";
    assert_identity(&run(source, 3).await.unwrap());
}

#[tokio::test]
async fn a_lazy_frame_is_collected() {
    let source = "
import polars as pl
def transform(batch: pl.DataFrame):
    return batch.lazy().drop('count')
";
    assert_identity(&run(source, 3).await.unwrap());
}

#[tokio::test]
async fn pyarrow_in_and_out() {
    for kind in ["RecordBatch", "Table"] {
        let source = format!(
            "
import pyarrow as pa
def transform(batch: pa.{kind}):
    assert isinstance(batch, pa.{kind}), type(batch)
    return batch.drop_columns(['count'])
"
        );
        assert_identity(&run(&source, 3).await.unwrap());
    }
}

#[tokio::test]
async fn pandas_in_and_out_and_its_index_does_not_leak() {
    let source = "
import pandas as pd
def transform(batch: pd.DataFrame):
    assert isinstance(batch, pd.DataFrame), type(batch)
    return batch.drop(columns=['count'])
";
    assert_identity(&run(source, 3).await.unwrap());
    let filtered = source.replace("return batch", "return batch[batch['_row'] != 1]");
    assert_eq!(row_numbers(&run(&filtered, 3).await.unwrap().rows), [0, 2]);
}

#[tokio::test]
async fn a_list_of_dicts_in_and_out() {
    let source = "
from datetime import timezone
def transform(batch: list[dict]) -> list[dict]:
    assert batch[0]['count'] == 0 and batch[1]['count'] is None
    assert batch[0]['event_timestamp'].tzinfo is timezone.utc
    assert batch[0]['event_timestamp'].isoformat() == '2023-11-14T22:13:20.123456+00:00'
    return [{k: v for k, v in e.items() if k != 'count'} for e in batch]
";
    assert_identity(&run(source, 3).await.unwrap());
}

#[tokio::test]
async fn one_event_in_and_out() {
    assert_identity(&run(EVENT_IDENTITY, 3).await.unwrap());
}

#[tokio::test]
async fn one_event_needs_no_packages() {
    let bare = WorkerSpec { site_dirs: vec![PathBuf::from("/nonexistent")], ..alone() };
    let mut worker = in_time(WorkerProcess::spawn(&bare)).await.unwrap();
    let source = format!(
        "import sys\n{EVENT_IDENTITY}\nassert not {{'polars', 'pyarrow', 'numpy'}} & set(sys.modules)\n"
    );
    worker.load(&script(&source), &events(0).schema()).await.unwrap();
    assert_identity(&worker.transform(&events(3)).await.unwrap());
    // Without an annotation and without polars: rows.
    let loaded =
        worker.load(&script("def transform(batch): return []"), &events(0).schema()).await.unwrap();
    assert_eq!(loaded.style, Style::Rows);
    let import = worker.load(&script("import polars"), &events(0).schema()).await.unwrap_err();
    assert!(
        matches!(&import, WorkerError::Import { message, .. } if message.contains("No module named 'polars'"))
    );
    worker.stop(DEADLINE).await;
}

#[tokio::test]
async fn annotations_pick_the_style() {
    let cases = [
        ("def transform(b): ...", Style::Polars),
        (
            "from __future__ import annotations\nimport polars as pl\ndef transform(b: pl.DataFrame): ...",
            Style::Polars,
        ),
        (
            "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas as pd\ndef transform(b: pd.DataFrame): ...",
            Style::Pandas,
        ),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pyarrow import RecordBatch as RB\ndef transform(b: 'RB'): ...",
            Style::RecordBatch,
        ),
        ("import pyarrow\ndef transform(b: pyarrow.Table): ...", Style::Table),
        ("def transform(b: list): ...", Style::Rows),
        ("from typing import Any, List\ndef transform(b: List[dict[str, Any]]): ...", Style::Rows),
        ("def transform(e: dict): ...", Style::Event),
        (
            "from __future__ import annotations\ndef transform(e: dict[str, object]): ...",
            Style::Event,
        ),
        (
            "from collections.abc import Mapping\ndef transform(e: Mapping[str, object]): ...",
            Style::Event,
        ),
        (
            "from typing import TypedDict\nclass E(TypedDict):\n    a: int\ndef transform(e: E): ...",
            Style::Event,
        ),
        (
            "from typing import TypedDict\nclass E(TypedDict):\n    a: int\ndef transform(e: list[E]): ...",
            Style::Rows,
        ),
    ];
    let mut worker = in_time(WorkerProcess::spawn(&spec())).await.unwrap();
    for (source, style) in cases {
        let loaded = in_time(worker.load(&script(source), &events(0).schema())).await;
        assert_eq!(
            loaded.unwrap_or_else(|error| panic!("{source}: {error}")).style,
            style,
            "{source}"
        );
    }
    let refused =
        in_time(worker.load(&script("def transform(x: int): ..."), &events(0).schema())).await;
    assert!(
        matches!(&refused, Err(WorkerError::Import { message, .. }) if message.contains("annotated")),
        "{refused:?}"
    );
    in_time(worker.stop(DEADLINE)).await;
}

#[tokio::test]
async fn an_unusable_annotation_does_not_import_what_is_not_there() {
    let source = "
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import no_such_package as nope
def transform(b: nope.DataFrame): ...
";
    let refused = style_of(source).await.unwrap_err();
    assert!(
        matches!(&refused, WorkerError::Import { message, .. } if message.contains("nope.DataFrame")),
        "{refused:?}"
    );
}

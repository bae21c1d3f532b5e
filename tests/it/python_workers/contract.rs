//! What a script may give back for its events, and what becomes of what it may not.

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use millstream::python::WorkerError;

use super::{DEADLINE, EVENT_IDENTITY, assert_identity, events, in_time, row_numbers};
use super::{run, script, started, values};

#[tokio::test]
async fn none_filters_and_lists_fan_out() {
    let source = "
def transform(event: dict):
    row = event['_row']
    del event['count']
    if row == 0:
        return None
    return [{**event, 'feature_name': f'f{i}', 'value': i} for i in range(row)]
";
    let output = run(source, 4).await.unwrap();
    assert_eq!(row_numbers(&output.rows), [1, 2, 2, 3, 3, 3]);
    assert_eq!(values(&output.rows)[3..], [Some(0.0), Some(1.0), Some(2.0)]);
    assert!(output.rejected.is_empty());
}

#[tokio::test]
async fn batch_filters_and_fan_out_by_row() {
    let source = "
import polars as pl
def transform(batch: pl.DataFrame):
    kept = batch.drop('count').filter(pl.col('_row') != 1)
    return pl.concat([kept, kept.with_columns(feature_name=pl.lit('twice'))])
";
    let output = run(source, 3).await.unwrap();
    assert_eq!(row_numbers(&output.rows), [0, 0, 2, 2]);
    assert_eq!(output.rows.column(2).as_string::<i32>().value(1), "twice");
    // A list may be empty without saying more.
    let none = run("def transform(batch: list[dict]): return []", 3).await.unwrap();
    assert_eq!((none.rows.num_rows(), none.rejected.len()), (0, 0));
}

#[tokio::test]
async fn one_exception_costs_one_row() {
    let source = "
def transform(event: dict):
    del event['count']
    if event['_row'] == 1:
        1 / 0
    return event
";
    let output = run(source, 3).await.unwrap();
    assert_eq!(row_numbers(&output.rows), [0, 2]);
    let [rejected] = &output.rejected[..] else { panic!("{:?}", output.rejected) };
    assert_eq!((rejected.row, rejected.reason.as_str()), (1, "exception"));
    // The traceback shows the text that ran, although there is no such file.
    for part in [
        "/scripts/under_test.py\", line 5, in transform",
        "1 / 0",
        "ZeroDivisionError: division by zero",
    ] {
        assert!(rejected.detail.contains(part), "{}", rejected.detail);
    }
}

#[tokio::test]
async fn a_wrong_result_for_one_event_costs_one_row() {
    let wrong = [
        ("'text'", "returned str"),
        ("[event, 7]", "a row is int, not a dict"),
        ("{**event, 'value': float('nan')}", "NaN"),
        ("{**event, 'value': '7'}", "\"value\" is str"),
        ("{**event, 'value': 10**400}", "no number of 64 bits"),
        ("{**event, 'entity_id': None}", "NoneType"),
        ("{**event, 'entity_id': '\\ud800'}", "Unicode"),
        ("[event, {**event, 'entity_id': '\\ud800'}]", "Unicode"),
        (
            "{**event, 'event_timestamp': event['event_timestamp'].replace(tzinfo=None)}",
            "without a time zone",
        ),
        ("{**event, 'event_timestamp': 5}", "not a datetime"),
        ("{**event, 'event_timestamp': None}", "is None"),
        ("{**event, 'extra': 5}", "unknown keys extra"),
        ("{**event, '_row': 0}", "claims the _row 0"),
        ("{}", "has no"),
    ];
    let mut worker = started(EVENT_IDENTITY).await;
    for (expression, why) in wrong {
        let source = format!(
            "
def transform(event: dict):
    del event['count']
    if event['_row'] == 1:
        return {expression}
    return event
"
        );
        in_time(worker.load(&script(&source), &events(0).schema())).await.unwrap();
        let output = in_time(worker.transform(&events(3))).await.unwrap();
        assert_eq!(row_numbers(&output.rows), [0, 2], "{expression}");
        let [rejected] = &output.rejected[..] else { panic!("{:?}", output.rejected) };
        assert_eq!((rejected.row, rejected.reason.as_str()), (1, "contract"));
        assert!(rejected.detail.contains(why), "{expression}: {}", rejected.detail);
    }
    in_time(worker.stop(DEADLINE)).await;
}

#[tokio::test]
async fn kinds_of_values_and_zones() {
    let source = "
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo
def transform(event: dict):
    at = event['event_timestamp']
    zones = [timezone(timedelta(hours=5, minutes=30)), ZoneInfo('Europe/Berlin'), timezone.utc, timezone(timedelta(0))]
    return [
        {'entity_id': 7, 'feature_name': 'f', 'value': value, 'event_timestamp': at.astimezone(zone), 'created_at': at}
        for value, zone in zip([True, Decimal('1.5'), None, -3], zones)
    ]
";
    let output = run(source, 1).await.unwrap();
    assert!(output.rejected.is_empty(), "{:?}", output.rejected);
    assert_eq!(values(&output.rows), [Some(1.0), Some(1.5), None, Some(-3.0)]);
    assert_eq!(output.rows.column(1).as_string::<i32>().value(0), "7");
    for column in [4, 5] {
        let at = output.rows.column(column).as_primitive::<TimestampMicrosecondType>();
        assert_eq!(at.values(), &[1_700_000_000_123_456; 4]);
    }
}

#[tokio::test]
async fn batch_outputs_that_are_refused() {
    let table = "batch.drop('count')";
    let wrong = [
        (format!("{table}.head(2).drop('_row')"), "2 rows for 3 events"),
        (format!("{table}.drop('value')"), "\"value\" is missing"),
        ("batch".to_owned(), "\"count\" is unknown"),
        (format!("{table}.with_columns(value=pl.lit(float('nan')))"), "not a finite number"),
        (format!("{table}.with_columns(value=pl.lit('x'))"), "has the type"),
        (format!("{table}.with_columns(_row=pl.col('_row') + 1)"), "\"_row\" in row 2 is 3"),
        (format!("{table}.with_columns(entity_id=pl.lit(None))"), "null in row 0"),
        (
            format!("{table}.with_columns(pl.col('event_timestamp').dt.replace_time_zone(None))"),
            "without a time zone",
        ),
        ("None".to_owned(), "returned None"),
        ("42".to_owned(), "returned builtins.int"),
        ("[{'entity_id': 1}]".to_owned(), "has no \"feature_name\" (row 0 of the output)"),
        (
            format!("{table}.to_dicts()[:2] + [{{**{table}.drop('_row').to_dicts()[0]}}]"),
            "some rows have \"_row\"",
        ),
    ];
    let mut worker = started("def transform(b: dict): ...").await;
    for (expression, why) in wrong {
        let source = format!(
            "import polars as pl\ndef transform(batch: pl.DataFrame):\n    return {expression}\n"
        );
        in_time(worker.load(&script(&source), &events(0).schema())).await.unwrap();
        let refused = in_time(worker.transform(&events(3))).await;
        assert!(
            matches!(&refused, Err(WorkerError::Contract(message)) if message.contains(why)),
            "{expression}: {refused:?}"
        );
        assert!(worker.is_usable());
    }
    in_time(worker.stop(DEADLINE)).await;
}

#[tokio::test]
async fn columns_of_nothing_are_null() {
    let source = "
import polars as pl
def transform(batch: pl.DataFrame):
    return batch.drop('count').with_columns(value=None, created_at=None)
";
    let output = run(source, 2).await.unwrap();
    assert_eq!((values(&output.rows), output.rows.column(5).null_count()), (vec![None, None], 2));
}

#[tokio::test]
async fn empty_batches_pass() {
    for source in [
        EVENT_IDENTITY,
        "def transform(b: list[dict]): return b",
        "def transform(b): return b.drop('count')",
    ] {
        assert_eq!(run(source, 0).await.unwrap().rows.num_rows(), 0);
    }
}

#[tokio::test]
async fn a_batch_whose_rows_do_not_count_from_zero_is_not_sent() {
    let mut worker = started(EVENT_IDENTITY).await;
    let refused = worker.transform(&events(3).slice(1, 2)).await;
    assert!(matches!(refused, Err(WorkerError::Input(_))));
    assert_identity(&worker.transform(&events(3)).await.unwrap());
    worker.kill().await;
}

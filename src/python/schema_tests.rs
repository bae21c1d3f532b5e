//! What `normalise` accepts, changes and refuses.

use arrow::array::{
    BooleanArray, Date32Array, DictionaryArray, Float32Array, Int16Array, Int32Array, Int64Array,
    LargeStringArray, StringArray, StringViewArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow::datatypes::Int32Type;

use super::*;

fn columns(
    entity: ArrayRef,
    name: ArrayRef,
    value: ArrayRef,
    at: ArrayRef,
) -> Vec<(&'static str, ArrayRef)> {
    vec![(ENTITY_ID, entity), (FEATURE_NAME, name), (VALUE, value), (EVENT_TIMESTAMP, at)]
}

/// Two good rows.
fn good() -> Vec<(&'static str, ArrayRef)> {
    columns(
        Arc::new(StringArray::from(vec!["a", "b"])),
        Arc::new(StringArray::from(vec!["f", "g"])),
        Arc::new(Float64Array::from(vec![Some(1.0), None])),
        Arc::new(TimestampMicrosecondArray::from(vec![1_000_000, 2_000_000]).with_timezone("UTC")),
    )
}

fn with(name: &'static str, array: ArrayRef) -> Vec<(&'static str, ArrayRef)> {
    let mut columns = good();
    columns.retain(|(column, _)| *column != name);
    columns.push((name, array));
    columns
}

fn batch(columns: Vec<(&'static str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<_> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns.into_iter().map(|(_, array)| array).collect(),
    )
    .unwrap()
}

fn refused(columns: Vec<(&'static str, ArrayRef)>) -> OutputError {
    normalise(batch(columns), 2).unwrap_err()
}

#[test]
fn rows_in_the_inputs_order_get_their_numbers() {
    let rows = normalise(batch(good()), 2).unwrap();
    assert_eq!(rows.schema(), canonical());
    assert_eq!(row_column(&rows).values(), &[0, 1]);
    assert_eq!(rows.column(5).null_count(), 2);
    assert_eq!(check(&rows, 2), Ok(()));
}

#[test]
fn every_kind_of_text_is_text() {
    let dictionary: DictionaryArray<Int32Type> = vec!["x", "y"].into_iter().collect();
    let kinds: [ArrayRef; 3] = [
        Arc::new(StringViewArray::from(vec!["x", "y"])),
        Arc::new(LargeStringArray::from(vec!["x", "y"])),
        Arc::new(dictionary),
    ];
    for kind in kinds {
        for column in [ENTITY_ID, FEATURE_NAME] {
            let rows = normalise(batch(with(column, Arc::clone(&kind))), 2).unwrap();
            let texts = rows.column_by_name(column).unwrap().as_string::<i32>();
            assert_eq!((texts.value(0), texts.value(1)), ("x", "y"));
        }
    }
}

#[test]
fn whole_numbers_are_entity_ids_but_not_names() {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![7, -8]));
    let rows = normalise(batch(with(ENTITY_ID, Arc::clone(&ids))), 2).unwrap();
    assert_eq!(rows.column(1).as_string::<i32>().value(1), "-8");
    assert!(matches!(
        refused(with(FEATURE_NAME, ids)),
        OutputError::Type { column: FEATURE_NAME, .. }
    ));
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0]));
    assert!(matches!(
        refused(with(ENTITY_ID, floats)),
        OutputError::Type { column: ENTITY_ID, .. }
    ));
}

#[test]
fn numbers_and_booleans_are_values() {
    let kinds: [(ArrayRef, f64); 4] = [
        (Arc::new(Int16Array::from(vec![5, 6])), 6.0),
        (Arc::new(Float32Array::from(vec![0.5, 1.5])), 1.5),
        (Arc::new(BooleanArray::from(vec![false, true])), 1.0),
        (Arc::new(Int64Array::from(vec![1, -2])), -2.0),
    ];
    for (kind, second) in kinds {
        let rows = normalise(batch(with(VALUE, kind)), 2).unwrap();
        assert_eq!(rows.column(3).as_primitive::<Float64Type>().value(1), second);
    }
    let nothing = normalise(batch(with(VALUE, new_null_array(&DataType::Null, 2))), 2).unwrap();
    assert_eq!(nothing.column(3).null_count(), 2);
    let text: ArrayRef = Arc::new(StringArray::from(vec!["1", "2"]));
    assert!(matches!(refused(with(VALUE, text)), OutputError::Type { column: VALUE, .. }));
}

#[test]
fn timestamps_of_any_unit_and_zone_are_the_same_instant() {
    let kinds: [ArrayRef; 3] = [
        Arc::new(TimestampSecondArray::from(vec![1, 2]).with_timezone("Europe/Berlin")),
        Arc::new(
            TimestampNanosecondArray::from(vec![1_000_000_999, 2_000_000_000])
                .with_timezone("+05:30"),
        ),
        Arc::new(
            TimestampMicrosecondArray::from(vec![1_000_000, 2_000_000]).with_timezone("Etc/UTC"),
        ),
    ];
    for kind in kinds {
        let rows = normalise(batch(with(EVENT_TIMESTAMP, kind)), 2).unwrap();
        assert_eq!(
            rows.column(4).as_primitive::<TimestampMicrosecondType>().values(),
            &[1_000_000, 2_000_000]
        );
    }
}

#[test]
fn timestamps_without_a_zone_are_refused() {
    let naive: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1, 2]));
    let error = refused(with(EVENT_TIMESTAMP, Arc::clone(&naive)));
    assert_eq!(error, OutputError::Naive { column: EVENT_TIMESTAMP });
    assert!(error.to_string().contains("without a time zone"));
    assert_eq!(refused(with(CREATED_AT, naive)), OutputError::Naive { column: CREATED_AT });
    let dates: ArrayRef = Arc::new(Date32Array::from(vec![1, 2]));
    assert!(matches!(refused(with(EVENT_TIMESTAMP, dates)), OutputError::Type { .. }));
}

#[test]
fn an_instant_that_does_not_fit_is_named() {
    let far: ArrayRef =
        Arc::new(TimestampSecondArray::from(vec![1, i64::MAX]).with_timezone("UTC"));
    assert!(matches!(
        refused(with(EVENT_TIMESTAMP, far)),
        OutputError::OutOfRange { column: EVENT_TIMESTAMP, at: 1, .. }
    ));
}

#[test]
fn created_at_is_kept_where_given() {
    let created: ArrayRef =
        Arc::new(TimestampMicrosecondArray::from(vec![Some(5), None]).with_timezone("UTC"));
    let rows = normalise(batch(with(CREATED_AT, created)), 2).unwrap();
    let created = rows.column(5).as_primitive::<TimestampMicrosecondType>();
    assert_eq!((created.value(0), created.is_null(1)), (5, true));
}

#[test]
fn nulls_are_refused_where_something_must_be() {
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
    assert_eq!(
        refused(with(ENTITY_ID, Arc::clone(&texts))),
        OutputError::Null { column: ENTITY_ID, at: 1 }
    );
    assert_eq!(
        refused(with(FEATURE_NAME, texts)),
        OutputError::Null { column: FEATURE_NAME, at: 1 }
    );
    let nothing = new_null_array(&DataType::Null, 2);
    for column in [ENTITY_ID, EVENT_TIMESTAMP, ROW] {
        assert_eq!(
            refused(with(column, Arc::clone(&nothing))),
            OutputError::Null { column, at: 0 }
        );
    }
    let hidden = DictionaryArray::new(
        Int32Array::from(vec![0, 1]),
        Arc::new(StringArray::from(vec![Some("x"), None])),
    );
    assert_eq!(
        refused(with(ENTITY_ID, Arc::new(hidden))),
        OutputError::Null { column: ENTITY_ID, at: 1 }
    );
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for (bad, text) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf")] {
        let values: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.0), Some(bad)]));
        assert_eq!(
            refused(with(VALUE, values)),
            OutputError::NotFinite { at: 1, found: text.into() }
        );
    }
}

#[test]
fn missing_and_unknown_columns_are_named() {
    for column in [ENTITY_ID, FEATURE_NAME, VALUE, EVENT_TIMESTAMP] {
        let mut columns = good();
        columns.retain(|(name, _)| *name != column);
        assert!(
            matches!(refused(columns), OutputError::Missing { column: missing, .. } if missing == column)
        );
    }
    let extra = with("craeted_at", Arc::new(Int32Array::from(vec![1, 2])));
    assert_eq!(refused(extra), OutputError::Unknown { column: "craeted_at".into() });
    let mut twice = good();
    twice.push(good().remove(2));
    assert_eq!(refused(twice), OutputError::Unknown { column: VALUE.into() });
}

#[test]
fn the_count_must_agree_without_row_numbers() {
    let error = normalise(batch(good()), 3).unwrap_err();
    assert_eq!(error, OutputError::Count { n_out: 2, n_in: 3 });
    assert!(error.to_string().contains("2 rows for 3 events"));
}

#[test]
fn row_numbers_allow_filter_and_fan_out_and_are_sorted_stably() {
    let mut columns = good();
    columns.push((ROW, Arc::new(Int64Array::from(vec![9, 4]))));
    let rows = normalise(batch(columns), 10).unwrap();
    assert_eq!(row_column(&rows).values(), &[4, 9]);
    assert_eq!(rows.column(1).as_string::<i32>().value(0), "b");

    let same = with(ROW, Arc::new(Int32Array::from(vec![1, 1])));
    let rows = normalise(batch(same), 2).unwrap();
    assert_eq!(rows.column(1).as_string::<i32>().value(0), "a");
}

#[test]
fn row_numbers_of_no_event_are_refused() {
    let beyond = with(ROW, Arc::new(Int32Array::from(vec![0, 2])));
    assert_eq!(refused(beyond), OutputError::NoSuchRow { at: 1, row: 2, n_in: 2 });
    let negative = with(ROW, Arc::new(Int32Array::from(vec![-1, 0])));
    assert!(matches!(refused(negative), OutputError::OutOfRange { column: ROW, at: 0, .. }));
    let floats = with(ROW, Arc::new(Float64Array::from(vec![0.0, 1.0])));
    assert!(matches!(refused(floats), OutputError::Type { column: ROW, .. }));
}

#[test]
fn no_rows_at_all_need_row_numbers_too() {
    let empty = batch(good()).slice(0, 0);
    assert_eq!(normalise(empty.clone(), 2).unwrap_err(), OutputError::Count { n_out: 0, n_in: 2 });
    assert_eq!(normalise(empty, 0).unwrap().num_rows(), 0);
    let filtered = batch(with(ROW, Arc::new(Int32Array::from(vec![0, 1])))).slice(0, 0);
    assert_eq!(normalise(filtered, 2).unwrap().num_rows(), 0);
}

#[test]
fn rejected_rows_are_left_out() {
    let rows = normalise(batch(good()), 2).unwrap();
    let rest = without(rows.clone(), &[true, false]).unwrap();
    assert_eq!(row_column(&rest).values(), &[1]);
    assert_eq!(without(rows.clone(), &[false, false]).unwrap(), rows);
}

#[test]
fn the_check_sees_what_is_not_canonical() {
    let rows = normalise(batch(good()), 2).unwrap();
    assert!(check(&rows, 1).is_err());
    assert!(check(&batch(good()), 2).is_err());
    let backwards = take_record_batch(&rows, &UInt32Array::from(vec![1, 0])).unwrap();
    assert!(check(&backwards, 2).is_err());
}

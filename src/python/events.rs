//! From Arrow columns to the dicts that the row styles are given.
//!
//! One dict an event, with the schema's columns and `_row`. Nulls are `None`, timestamps with a
//! zone are `datetime` in UTC, those without stay naive. The hot path of the one-event style: no
//! intermediate objects, interned keys.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Float64Array, Int64Array,
    RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Float64Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
    UInt64Type,
};
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyBytes, PyDate, PyDateTime, PyDict, PyFloat, PyList, PyString, PyTzInfo,
};

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// A batch, ready to be read out event by event.
pub(super) struct Events<'py> {
    columns: Vec<(Bound<'py, PyString>, Column)>,
    len: usize,
    utc: Bound<'py, PyTzInfo>,
}

impl<'py> Events<'py> {
    /// # Errors
    /// A sentence, when a column's type has no Python value here.
    pub fn new(py: Python<'py>, batch: &RecordBatch) -> Result<Self, String> {
        let columns = batch
            .schema_ref()
            .fields()
            .iter()
            .zip(batch.columns())
            .map(|(field, array)| {
                Ok((PyString::intern(py, field.name()), Column::new(field.name(), array)?))
            })
            .collect::<Result<_, String>>()?;
        let utc = PyTzInfo::utc(py).map_err(|error| error.to_string())?.to_owned();
        Ok(Self { columns, len: batch.num_rows(), utc })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The event at `index`, which must be below [`Events::len`].
    pub fn event(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyDict>> {
        let event = PyDict::new(py);
        for (name, column) in &self.columns {
            match column.value(py, index, &self.utc)? {
                Some(value) => event.set_item(name, value)?,
                None => event.set_item(name, py.None())?,
            }
        }
        Ok(event)
    }

    /// All events.
    pub fn list(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for index in 0..self.len {
            list.append(self.event(py, index)?)?;
        }
        Ok(list)
    }
}

/// Whether every column of `schema` has a Python value here.
///
/// # Errors
/// A sentence that names the first column which has none.
pub(super) fn supported(schema: &Schema) -> Result<(), String> {
    schema.fields().iter().try_for_each(|field| plan(field.name(), field.data_type()).map(|_| ()))
}

/// The few types that columns are brought to before they are read out.
fn plan(name: &str, kind: &DataType) -> Result<DataType, String> {
    Ok(match kind {
        DataType::Null | DataType::Boolean => kind.clone(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => DataType::Int64,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            DataType::UInt64
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Date32 => DataType::Date32,
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Dictionary(_, values) => plan(name, values)?,
        other => {
            return Err(format!(
                "the column {name:?} of type {other} cannot be handed over as a dict's value; use a table style"
            ));
        }
    })
}

/// One column, by the way it is read out.
enum Column {
    Null,
    Bool(BooleanArray),
    Int(Int64Array),
    UInt(UInt64Array),
    Float(Float64Array),
    Text(StringArray),
    Bytes(BinaryArray),
    Date(Date32Array),
    Instant { micros: TimestampMicrosecondArray, aware: bool },
}

impl Column {
    fn new(name: &str, array: &ArrayRef) -> Result<Self, String> {
        let target = plan(name, array.data_type())?;
        let array =
            cast(array, &target).map_err(|error| format!("the column {name:?}: {error}"))?;
        Ok(match target {
            DataType::Boolean => Self::Bool(array.as_boolean().clone()),
            DataType::Int64 => Self::Int(array.as_primitive::<Int64Type>().clone()),
            DataType::UInt64 => Self::UInt(array.as_primitive::<UInt64Type>().clone()),
            DataType::Float64 => Self::Float(array.as_primitive::<Float64Type>().clone()),
            DataType::Utf8 => Self::Text(array.as_string::<i32>().clone()),
            DataType::Binary => Self::Bytes(array.as_binary::<i32>().clone()),
            DataType::Date32 => Self::Date(array.as_primitive::<Date32Type>().clone()),
            DataType::Timestamp(_, zone) => Self::Instant {
                micros: array.as_primitive::<TimestampMicrosecondType>().clone(),
                aware: zone.is_some(),
            },
            // `plan` gives nothing else but Null.
            _ => Self::Null,
        })
    }

    /// The value at `index`; `None` stands for null.
    fn value<'py>(
        &self,
        py: Python<'py>,
        index: usize,
        utc: &Bound<'py, PyTzInfo>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(Some(match self {
            Self::Null => return Ok(None),
            Self::Bool(array) if array.is_valid(index) => {
                PyBool::new(py, array.value(index)).to_owned().into_any()
            }
            Self::Int(array) if array.is_valid(index) => {
                array.value(index).into_pyobject(py)?.into_any()
            }
            Self::UInt(array) if array.is_valid(index) => {
                array.value(index).into_pyobject(py)?.into_any()
            }
            Self::Float(array) if array.is_valid(index) => {
                PyFloat::new(py, array.value(index)).into_any()
            }
            Self::Text(array) if array.is_valid(index) => {
                PyString::new(py, array.value(index)).into_any()
            }
            Self::Bytes(array) if array.is_valid(index) => {
                PyBytes::new(py, array.value(index)).into_any()
            }
            Self::Date(array) if array.is_valid(index) => {
                let (year, month, day) = civil_from_days(i64::from(array.value(index)));
                PyDate::new(py, year, month, day)?.into_any()
            }
            Self::Instant { micros, aware } if micros.is_valid(index) => {
                datetime(py, micros.value(index), aware.then_some(utc))?.into_any()
            }
            _ => return Ok(None),
        }))
    }
}

fn datetime<'py>(
    py: Python<'py>,
    micros: i64,
    zone: Option<&Bound<'py, PyTzInfo>>,
) -> PyResult<Bound<'py, PyDateTime>> {
    let seconds = micros.div_euclid(MICROS_PER_SECOND);
    let (year, month, day) = civil_from_days(seconds.div_euclid(SECONDS_PER_DAY));
    let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
    // All casts hold: the remainders are within a day and within a second.
    PyDateTime::new(
        py,
        year,
        month,
        day,
        (of_day / 3600) as u8,
        (of_day / 60 % 60) as u8,
        (of_day % 60) as u8,
        micros.rem_euclid(MICROS_PER_SECOND) as u32,
        zone,
    )
}

/// Days since 1970-01-01 to year, month, day of the proleptic Gregorian calendar.
///
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub(super) fn civil_from_days(days: i64) -> (i32, u8, u8) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u8;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u8;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    // Microseconds in 64 bits span less than 300,000 years either way.
    (year as i32, month, day)
}

/// Year, month, day to days since 1970-01-01: `days_from_civil` of the same source.
pub(super) fn days_from_civil(year: i32, month: u8, day: u8) -> i64 {
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;

    #[test]
    fn the_calendar_agrees_with_itself_and_with_known_days() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(-1), (1969, 12, 31));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
        assert_eq!(civil_from_days(-719_162), (1, 1, 1));
        for days in (-800_000..3_000_000).step_by(17) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }

    #[test]
    fn types_without_a_python_value_are_named() {
        let nested = DataType::new_list(DataType::Int64, true);
        let schema = Schema::new(vec![
            Field::new("a", DataType::Utf8View, true),
            Field::new("tags", nested, true),
        ]);
        let error = supported(&schema).unwrap_err();
        assert!(error.contains("\"tags\"") && error.contains("List"), "{error}");
        assert_eq!(supported(&Schema::new(vec![Field::new("a", DataType::Date32, true)])), Ok(()));
    }
}

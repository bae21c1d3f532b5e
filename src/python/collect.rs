//! From the dicts that a script returns to feature rows.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Builder, StringBuilder, TimestampMicrosecondBuilder, UInt32Builder,
};
use arrow::record_batch::RecordBatch;
use pyo3::prelude::*;
use pyo3::types::{
    PyDateAccess, PyDateTime, PyDelta, PyDeltaAccess, PyDict, PyFloat, PyInt, PyList, PyString,
    PyTimeAccess, PyTzInfo, PyTzInfoAccess,
};

use super::events::days_from_civil;
use super::schema::{self, CREATED_AT, ENTITY_ID, EVENT_TIMESTAMP, FEATURE_NAME, ROW, VALUE};

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// A refusal: one sentence on what is wrong with what a script returned.
#[derive(Debug)]
pub(super) struct Refusal(pub String);

/// A feature row still in Python's hands.
struct Parsed<'py> {
    row: Option<u32>,
    entity_id: Bound<'py, PyString>,
    feature_name: Bound<'py, PyString>,
    value: Option<f64>,
    event_timestamp: i64,
    created_at: Option<i64>,
}

/// Gathers feature rows from dicts, column by column.
pub(super) struct Collector<'py> {
    parser: Parser<'py>,
    pending: Vec<Parsed<'py>>,
    row: UInt32Builder,
    entity_id: StringBuilder,
    feature_name: StringBuilder,
    value: Float64Builder,
    event_timestamp: TimestampMicrosecondBuilder,
    created_at: TimestampMicrosecondBuilder,
}

impl<'py> Collector<'py> {
    /// A collector with room for `rows` rows.
    pub fn new(py: Python<'py>, rows: usize) -> PyResult<Self> {
        Ok(Self {
            parser: Parser::new(py)?,
            pending: Vec::new(),
            row: UInt32Builder::with_capacity(rows),
            entity_id: StringBuilder::with_capacity(rows, rows * 12),
            feature_name: StringBuilder::with_capacity(rows, rows * 12),
            value: Float64Builder::with_capacity(rows),
            event_timestamp: TimestampMicrosecondBuilder::with_capacity(rows),
            created_at: TimestampMicrosecondBuilder::with_capacity(rows),
        })
    }

    /// Takes what `transform` returned for the event `row`: a dict, a list of dicts or None. Takes
    /// all of it or, with a refusal, nothing.
    pub fn add_event(&mut self, row: u32, returned: &Bound<'py, PyAny>) -> Result<(), Refusal> {
        if returned.is_none() {
            return Ok(());
        }
        if let Ok(dict) = returned.cast::<PyDict>() {
            let parsed = self.parser.parse(dict)?;
            check_row(row, parsed.row)?;
            return self.append(row, &parsed);
        }
        let Ok(list) = returned.cast::<PyList>() else {
            return Err(Refusal(format!(
                "`transform` returned {} for an event; it can return a dict, a list of dicts or None",
                type_name(returned)
            )));
        };
        self.pending.clear();
        for item in list.iter() {
            let parsed = self.parser.parse(as_dict(&item)?)?;
            check_row(row, parsed.row)?;
            self.pending.push(parsed);
        }
        let pending = std::mem::take(&mut self.pending);
        pending.iter().try_for_each(|parsed| self.append(row, parsed))
    }

    /// Takes a whole batch's output. Either every dict carries `_row`, or none does and there are
    /// as many as events. An empty list means that every event was filtered.
    pub fn add_list(&mut self, returned: &Bound<'py, PyList>, n_in: u32) -> Result<(), Refusal> {
        let mut numbered = None;
        for (index, item) in returned.iter().enumerate() {
            let place =
                |Refusal(why): Refusal| Refusal(format!("{why} (row {index} of the output)"));
            let parsed = as_dict(&item).and_then(|dict| self.parser.parse(dict)).map_err(place)?;
            if *numbered.get_or_insert(parsed.row.is_some()) != parsed.row.is_some() {
                return Err(place(Refusal(format!("some rows have {ROW:?} and some do not"))));
            }
            // Without numbers a wrong count is refused below, so the index is a `_row`.
            self.append(parsed.row.unwrap_or(index as u32), &parsed).map_err(place)?;
        }
        let n_out = returned.len();
        if numbered == Some(false) && n_out != n_in as usize {
            return Err(Refusal(schema::OutputError::Count { n_out, n_in }.to_string()));
        }
        Ok(())
    }

    /// The rows, in the canonical layout.
    pub fn finish(mut self) -> Result<RecordBatch, Refusal> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row.finish()),
            Arc::new(self.entity_id.finish()),
            Arc::new(self.feature_name.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.event_timestamp.finish().with_timezone("UTC")),
            Arc::new(self.created_at.finish().with_timezone("UTC")),
        ];
        RecordBatch::try_new(schema::canonical(), columns)
            .map_err(|error| Refusal(error.to_string()))
    }

    fn append(&mut self, row: u32, parsed: &Parsed<'py>) -> Result<(), Refusal> {
        // The parser has checked both texts; a failure in between would leave half a row.
        let entity_id = utf8(ENTITY_ID, &parsed.entity_id)?;
        let feature_name = utf8(FEATURE_NAME, &parsed.feature_name)?;
        self.row.append_value(row);
        self.entity_id.append_value(entity_id);
        self.feature_name.append_value(feature_name);
        self.value.append_option(parsed.value);
        self.event_timestamp.append_value(parsed.event_timestamp);
        self.created_at.append_option(parsed.created_at);
        Ok(())
    }
}

fn utf8<'a>(column: &str, text: &'a Bound<'_, PyString>) -> Result<&'a str, Refusal> {
    text.to_str().map_err(|_| Refusal(format!("{column:?} is not valid Unicode")))
}

fn as_dict<'a, 'py>(item: &'a Bound<'py, PyAny>) -> Result<&'a Bound<'py, PyDict>, Refusal> {
    item.cast::<PyDict>().map_err(|_| Refusal(format!("a row is {}, not a dict", type_name(item))))
}

fn check_row(row: u32, claimed: Option<u32>) -> Result<(), Refusal> {
    match claimed {
        Some(other) if other != row => Err(Refusal(format!(
            "the output for the event with {ROW} {row} claims the {ROW} {other}"
        ))),
        _ => Ok(()),
    }
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    object
        .get_type()
        .qualname()
        .map_or_else(|_| "an unnameable object".into(), |name| name.to_string())
}

/// Reads feature rows out of dicts.
struct Parser<'py> {
    row: Bound<'py, PyString>,
    entity_id: Bound<'py, PyString>,
    feature_name: Bound<'py, PyString>,
    value: Bound<'py, PyString>,
    event_timestamp: Bound<'py, PyString>,
    created_at: Bound<'py, PyString>,
    utc: Bound<'py, PyTzInfo>,
}

impl<'py> Parser<'py> {
    fn new(py: Python<'py>) -> PyResult<Self> {
        let key = |name| PyString::intern(py, name);
        Ok(Self {
            row: key(ROW),
            entity_id: key(ENTITY_ID),
            feature_name: key(FEATURE_NAME),
            value: key(VALUE),
            event_timestamp: key(EVENT_TIMESTAMP),
            created_at: key(CREATED_AT),
            utc: PyTzInfo::utc(py)?.to_owned(),
        })
    }

    fn parse(&self, dict: &Bound<'py, PyDict>) -> Result<Parsed<'py>, Refusal> {
        let mut known = 4;
        let row = get(dict, &self.row)?;
        let created_at = get(dict, &self.created_at)?;
        let parsed = Parsed {
            entity_id: entity_id(required(dict, &self.entity_id)?)?,
            feature_name: feature_name(required(dict, &self.feature_name)?)?,
            value: number(&required(dict, &self.value)?)?,
            event_timestamp: match self
                .instant(EVENT_TIMESTAMP, &required(dict, &self.event_timestamp)?)?
            {
                Some(micros) => micros,
                None => return Err(Refusal(format!("{EVENT_TIMESTAMP:?} is None"))),
            },
            created_at: match &created_at {
                Some(created_at) => {
                    known += 1;
                    self.instant(CREATED_AT, created_at)?
                }
                None => None,
            },
            row: match &row {
                Some(row) => {
                    known += 1;
                    Some(
                        row.extract::<u32>()
                            .map_err(|_| Refusal(format!("{ROW:?} is no row number")))?,
                    )
                }
                None => None,
            },
        };
        if dict.len() != known {
            return Err(unknown_key(dict));
        }
        Ok(parsed)
    }

    /// Microseconds since 1970 of an aware datetime; `None` for None.
    fn instant(&self, column: &str, object: &Bound<'py, PyAny>) -> Result<Option<i64>, Refusal> {
        let Ok(at) = object.cast::<PyDateTime>() else {
            if object.is_none() {
                return Ok(None);
            }
            return Err(Refusal(format!("{column:?} is {}, not a datetime", type_name(object))));
        };
        let days = days_from_civil(at.get_year(), at.get_month(), at.get_day());
        let of_day = i64::from(at.get_hour()) * 3600
            + i64::from(at.get_minute()) * 60
            + i64::from(at.get_second());
        let local =
            (days * SECONDS_PER_DAY + of_day) * MICROS_PER_SECOND + i64::from(at.get_microsecond());
        match at.get_tzinfo() {
            Some(zone) if zone.is(&self.utc) => Ok(Some(local)),
            Some(_) => Ok(Some(local - utc_offset(column, at)?)),
            None => Err(naive(column)),
        }
    }
}

fn naive(column: &str) -> Refusal {
    Refusal(format!("{column:?} is a datetime without a time zone; use datetime.timezone.utc"))
}

/// Microseconds east of UTC.
fn utc_offset(column: &str, at: &Bound<'_, PyDateTime>) -> Result<i64, Refusal> {
    let offset = at
        .call_method0(pyo3::intern!(at.py(), "utcoffset"))
        .map_err(|error| Refusal(format!("{column:?} has no UTC offset: {error}")))?;
    let delta = offset.cast::<PyDelta>().map_err(|_| naive(column))?;
    let seconds = i64::from(delta.get_days()) * SECONDS_PER_DAY + i64::from(delta.get_seconds());
    Ok(seconds * MICROS_PER_SECOND + i64::from(delta.get_microseconds()))
}

fn get<'py>(
    dict: &Bound<'py, PyDict>,
    key: &Bound<'py, PyString>,
) -> Result<Option<Bound<'py, PyAny>>, Refusal> {
    // Looking up a str fails only where another key's comparison raises.
    dict.get_item(key)
        .map_err(|error| Refusal(format!("a row's {key:?} cannot be looked up: {error}")))
}

fn required<'py>(
    dict: &Bound<'py, PyDict>,
    key: &Bound<'py, PyString>,
) -> Result<Bound<'py, PyAny>, Refusal> {
    get(dict, key)?.ok_or_else(|| Refusal(format!("a row has no {:?}", key.to_string_lossy())))
}

fn entity_id<'py>(object: Bound<'py, PyAny>) -> Result<Bound<'py, PyString>, Refusal> {
    match object.cast_into::<PyString>() {
        Ok(text) => {
            utf8(ENTITY_ID, &text)?;
            Ok(text)
        }
        Err(error) => {
            let object = error.into_inner();
            if object.is_exact_instance_of::<PyInt>() {
                return object
                    .str()
                    .map_err(|error| Refusal(format!("{ENTITY_ID:?} cannot be written: {error}")));
            }
            Err(Refusal(format!("{ENTITY_ID:?} is {}, not a str or an int", type_name(&object))))
        }
    }
}

fn feature_name<'py>(object: Bound<'py, PyAny>) -> Result<Bound<'py, PyString>, Refusal> {
    let text = object.cast_into::<PyString>().map_err(|error| {
        Refusal(format!("{FEATURE_NAME:?} is {}, not a str", type_name(&error.into_inner())))
    })?;
    utf8(FEATURE_NAME, &text)?;
    Ok(text)
}

fn number(object: &Bound<'_, PyAny>) -> Result<Option<f64>, Refusal> {
    let value = if let Ok(float) = object.cast_exact::<PyFloat>() {
        float.value()
    } else if object.is_none() {
        return Ok(None);
    } else {
        // Whatever knows `__float__`: int, bool, Decimal, NumPy's scalars.
        object.extract::<f64>().map_err(|_| {
            Refusal(format!("{VALUE:?} is {}, which is no number of 64 bits", type_name(object)))
        })?
    };
    if value.is_finite() {
        Ok(Some(value))
    } else {
        Err(Refusal(format!(
            "{VALUE:?} is {value}, which is not a finite number (use None for \"no value\")"
        )))
    }
}

fn unknown_key(dict: &Bound<'_, PyDict>) -> Refusal {
    let known = [ROW, ENTITY_ID, FEATURE_NAME, VALUE, EVENT_TIMESTAMP, CREATED_AT];
    let mut names = dict.keys().iter().map(|key| key.to_string()).collect::<Vec<_>>();
    names.retain(|name| !known.contains(&name.as_str()));
    Refusal(format!(
        "a row has the unknown keys {}; feature rows have {}",
        names.join(", "),
        known.join(", ")
    ))
}

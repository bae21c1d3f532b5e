//! The interpreter of a worker: one script at a time, and batches through it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arrow::compute::concat_batches;
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyModule, PyString, PyTuple};
use pyo3_arrow::PyRecordBatch;
use pyo3_arrow::input::AnyRecordBatch;

use super::collect::{Collector, Refusal};
use super::context::Context;
use super::events::{self, Events};
use super::schema;
use super::script::Style;
use super::wire::{self, Failure, Fault, Load, LoadReply, Rejected};
use super::worker::Channel;
use crate::proto::worker as headers;

/// Why a row is rejected when the script raised for it.
const REASON_EXCEPTION: &str = "exception";
/// Why a row is rejected when what the script returned for it is refused.
const REASON_CONTRACT: &str = "contract";

/// An interpreter that is up, with the script that it has loaded.
pub(super) struct Session {
    bootstrap: Py<PyModule>,
    channel: Arc<Channel>,
    script: Option<Loaded>,
}

struct Loaded {
    transform: Py<PyAny>,
    teardown: Py<PyAny>,
    context: Py<Context>,
    style: Style,
    takes_ctx: bool,
    /// Makes the script's argument from an Arrow object; `None` in the row styles.
    convert: Option<Py<PyAny>>,
}

/// Starts the interpreter, sets up its path, and gives the module of `bootstrap.py`.
pub(super) fn bootstrap(site_dirs: Vec<PathBuf>) -> Result<Py<PyModule>, Failure> {
    speak_utf8()?;
    Python::attach(|py| {
        let text = pyo3::ffi::c_str!(include_str!("bootstrap.py"));
        let bootstrap =
            PyModule::from_code(py, text, c"<millstream worker>", c"_millstream_worker")
                .and_then(|module| module.call_method1("prepare", (site_dirs,)).map(|_| module))
                .map_err(|error| failure(Fault::Request, "Startup", error.to_string()))?;
        Ok(bootstrap.unbind())
    })
}

/// Text is UTF-8 whatever the locale of the node, as with `python -X utf8`: an embedded interpreter
/// does not look at `PYTHONUTF8`.
fn speak_utf8() -> Result<(), Failure> {
    use pyo3::ffi;
    // SAFETY: Python is not up yet in this process, which nobody else brings up. The structure is
    // filled in by the call made for that before it is read.
    let status = unsafe {
        let mut config = std::mem::MaybeUninit::<ffi::PyPreConfig>::zeroed();
        ffi::PyPreConfig_InitPythonConfig(config.as_mut_ptr());
        let mut config = config.assume_init();
        config.utf8_mode = 1;
        let status = ffi::Py_PreInitialize(&raw const config);
        if ffi::PyStatus_Exception(status) == 0 {
            return Ok(());
        }
        status
    };
    let why = if status.err_msg.is_null() {
        String::new()
    } else {
        // SAFETY: Python gives a text that it never frees.
        unsafe { std::ffi::CStr::from_ptr(status.err_msg) }.to_string_lossy().into_owned()
    };
    Err(failure(Fault::Request, "Startup", format!("Python cannot be set to UTF-8: {why}")))
}

impl Session {
    /// One of an interpreter that is up.
    pub fn new(bootstrap: Py<PyModule>, channel: Arc<Channel>) -> Self {
        Self { bootstrap, channel, script: None }
    }

    /// Loads a script in place of the one before, if there was one.
    pub fn load(&mut self, load: &Load, input: &Schema) -> Result<LoadReply, Failure> {
        let began = Instant::now();
        Python::attach(|py| {
            self.finish(py);
            let (loaded, timeout_seconds) = self.load_script(py, load, input).map_err(|error| {
                Failure { fault: Fault::Import.into(), ..self.describe(py, &error) }
            })?;
            let style = loaded.style;
            if matches!(style, Style::Rows | Style::Event) {
                events::supported(input).map_err(|why| failure(Fault::Import, "TypeError", why))?;
            }
            self.script = Some(loaded);
            self.flush(py);
            let style = headers::Style::from(style).into();
            Ok(LoadReply { style, seconds: began.elapsed().as_secs_f64(), timeout_seconds })
        })
    }

    /// The script, and the longest that a batch may take in seconds.
    fn load_script(&self, py: Python<'_>, load: &Load, input: &Schema) -> PyResult<(Loaded, f64)> {
        let bootstrap = self.bootstrap.bind(py);
        let params = py.import("json")?.call_method1("loads", (&load.params_json,))?.cast_into()?;
        let context = Py::new(py, Context::new(params.unbind(), Arc::clone(&self.channel)))?;
        let path = wire::path_from_bytes(&load.path).to_string_lossy();
        let columns: Vec<&str> = input.fields().iter().map(|f| f.name().as_str()).collect();
        let modules: Vec<_> = load
            .modules
            .iter()
            .map(|m| {
                let path = wire::path_from_bytes(&m.path).to_string_lossy();
                (&m.name, path, &m.source, m.is_package)
            })
            .collect();
        let (transform, style, takes_ctx, teardown, timeout): (_, String, bool, _, f64) = bootstrap
            .call_method1("load", (&load.name, path, &load.source, modules, &context, columns))?
            .extract()?;
        let convert: Option<Py<PyAny>> =
            bootstrap.call_method1("converter", (&style,))?.extract()?;
        let style = serde_json::from_value(serde_json::Value::String(style))
            .map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))?;
        Ok((Loaded { transform, teardown, context, style, takes_ctx, convert }, timeout))
    }

    /// Runs the script over a batch whose `_row` counts from 0.
    pub fn transform(&self, batch: RecordBatch) -> Result<(RecordBatch, Vec<Rejected>), Failure> {
        Python::attach(|py| {
            let script = self
                .script
                .as_ref()
                .ok_or_else(|| failure(Fault::Request, "Request", "no script is loaded".into()))?;
            let n_in = u32::try_from(batch.num_rows()).map_err(|_| {
                failure(Fault::Request, "Request", "more rows than _row can count".into())
            })?;
            let context = script.context.get();
            context.begin(batch.num_rows());
            let rows = match script.style {
                Style::Event => self.each_event(py, script, &batch),
                _ => self.whole_batch(py, script, batch, n_in),
            };
            let (dropped, rejected) = context.end();
            self.flush(py);
            let rows = rows.and_then(|rows| schema::without(rows, &dropped).map_err(contract))?;
            Ok((rows, rejected))
        })
    }

    fn each_event(
        &self,
        py: Python<'_>,
        script: &Loaded,
        batch: &RecordBatch,
    ) -> Result<RecordBatch, Failure> {
        let events =
            Events::new(py, batch).map_err(|why| failure(Fault::Request, "Request", why))?;
        let mut collector =
            Collector::new(py, events.len()).map_err(|error| self.describe(py, &error))?;
        let context = script.context.get();
        let transform = script.transform.bind(py);
        for index in 0..events.len() {
            let returned = events.event(py, index).and_then(|event| {
                if script.takes_ctx {
                    transform.call1((event, &script.context))
                } else {
                    transform.call1((event,))
                }
            });
            match returned {
                // What a script returns for an event that it rejected has no meaning.
                Ok(_) if script.takes_ctx && context.is_rejected(index) => {}
                Ok(returned) => {
                    // The row count was checked to fit `_row`.
                    if let Err(Refusal(why)) = collector.add_event(index as u32, &returned) {
                        context.reject_row(index, REASON_CONTRACT, &why);
                    }
                }
                Err(error) => {
                    context.reject_row(
                        index,
                        REASON_EXCEPTION,
                        &self.describe(py, &error).traceback,
                    );
                }
            }
        }
        collector.finish().map_err(refused)
    }

    fn whole_batch(
        &self,
        py: Python<'_>,
        script: &Loaded,
        batch: RecordBatch,
        n_in: u32,
    ) -> Result<RecordBatch, Failure> {
        let raised = |error: PyErr| self.describe(py, &error);
        let input = match &script.convert {
            Some(convert) => {
                convert.bind(py).call1((PyRecordBatch::new(batch),)).map_err(raised)?
            }
            None => {
                let events = Events::new(py, &batch)
                    .map_err(|why| failure(Fault::Request, "Request", why))?;
                events.list(py).map_err(raised)?.into_any()
            }
        };
        let transform = script.transform.bind(py);
        let returned = if script.takes_ctx {
            transform.call1((input, &script.context))
        } else {
            transform.call1((input,))
        }
        .map_err(raised)?;

        let rows = if let Ok(list) = returned.cast::<PyList>() {
            let mut collector = Collector::new(py, list.len()).map_err(raised)?;
            collector.add_list(list, n_in).map_err(refused)?;
            collector.finish().map_err(refused)?
        } else {
            let object =
                self.bootstrap.bind(py).call_method1("to_arrow", (&returned,)).map_err(raised)?;
            import(&object).map_err(|error| contract(self.describe(py, &error).message))?
        };
        // Columns of Rust's own by now: other threads of the script may run meanwhile.
        py.detach(|| schema::normalise(rows, n_in)).map_err(contract)
    }

    /// Lets the script end, and then all that is registered for the end of the process.
    pub fn leave(&mut self) {
        Python::attach(|py| {
            self.finish(py);
            // `leave` catches whatever is raised; what is left concerns no one any more.
            let _ = self.bootstrap.bind(py).call_method0("leave");
        });
    }

    /// Lets the script end; the interpreter stays.
    fn finish(&mut self, py: Python<'_>) {
        if let Some(script) = self.script.take() {
            let bootstrap = self.bootstrap.bind(py);
            // `finish` catches whatever the script raises; what is left concerns no one any more.
            let _ = bootstrap.call_method1("finish", (script.teardown, script.context));
        }
    }

    fn flush(&self, py: Python<'_>) {
        super::worker::mend_standard_streams();
        // `flush` catches whatever the streams raise.
        let _ = self.bootstrap.bind(py).call_method0("flush");
    }

    fn describe(&self, py: Python<'_>, error: &PyErr) -> Failure {
        let bootstrap = self.bootstrap.bind(py);
        let refused =
            bootstrap.getattr("ContractError").is_ok_and(|class| error.is_instance(py, &class));
        let told = bootstrap
            // The value carries the traceback only once it is taken out like this.
            .call_method1("describe", (error.clone_ref(py).into_value(py),))
            .and_then(|told| told.cast_into::<PyTuple>().map_err(PyErr::from))
            .map(|told| -> Vec<String> {
                // Lossy: an exception's text may hold lone surrogates.
                told.iter()
                    .map(|part| {
                        part.cast::<PyString>()
                            .map_or_else(|_| String::new(), |text| text.to_string_lossy().into())
                    })
                    .collect()
            });
        let fault = if refused { Fault::Contract } else { Fault::Exception };
        match told.as_deref() {
            Ok([kind, message, traceback]) => Failure {
                fault: fault.into(),
                kind: kind.clone(),
                message: message.clone(),
                traceback: traceback.clone(),
            },
            _ => failure(fault, "Exception", "an exception that cannot be described".into()),
        }
    }
}

/// The table behind an object with Arrow capsules, in one piece.
fn import(object: &Bound<'_, PyAny>) -> PyResult<RecordBatch> {
    let (batches, schema) = match object.extract::<AnyRecordBatch>()? {
        AnyRecordBatch::RecordBatch(batch) => return Ok(batch.into_inner()),
        stream => stream.into_table()?.into_inner(),
    };
    match <[RecordBatch; 1]>::try_from(batches) {
        Ok([batch]) => Ok(batch),
        Err(batches) => concat_batches(&schema, &batches)
            .map_err(|error| pyo3::exceptions::PyValueError::new_err(error.to_string())),
    }
}

fn contract(why: impl ToString) -> Failure {
    failure(Fault::Contract, "Contract", why.to_string())
}

fn refused(Refusal(why): Refusal) -> Failure {
    contract(why)
}

/// A failure without a traceback.
pub(super) fn failure(fault: Fault, kind: &str, message: String) -> Failure {
    Failure { fault: fault.into(), kind: kind.to_owned(), message, traceback: String::new() }
}

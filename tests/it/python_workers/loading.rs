//! What goes on around a script: its loading, its context, its exceptions, setup and teardown.

use std::path::Path;

use arrow::datatypes::{DataType, Field, Schema};
use millstream::python::{Exit, Script, WorkerError, WorkerProcess};

use super::{DEADLINE, EVENT_IDENTITY, assert_identity, events, in_time, row_numbers, values};
use super::{run, script, spec, started};

#[tokio::test]
async fn an_exception_in_a_batch_style_fails_the_batch_and_the_worker_goes_on() {
    let source = "
import sys
calls = 0
def transform(batch: list[dict]):
    global calls
    calls += 1
    if calls == 1:
        raise ValueError('no good')
    if calls == 2:
        sys.exit(4)
    return [{k: v for k, v in e.items() if k != 'count'} for e in batch]
";
    let mut worker = started(source).await;
    let failed = worker.transform(&events(3)).await.unwrap_err();
    let WorkerError::Script { kind, message, traceback } = failed else { panic!("{failed:?}") };
    assert_eq!((kind.as_str(), message.as_str()), ("ValueError", "no good"));
    assert!(
        traceback.starts_with("Traceback") && traceback.contains("line 8, in transform"),
        "{traceback}"
    );
    assert!(!traceback.contains("millstream worker"), "{traceback}");
    let failed = worker.transform(&events(3)).await.unwrap_err();
    assert!(
        matches!(&failed, WorkerError::Script { kind, .. } if kind == "SystemExit"),
        "{failed:?}"
    );
    assert_identity(&worker.transform(&events(3)).await.unwrap());
    worker.stop(DEADLINE).await;
}

#[tokio::test]
async fn the_context_rejects_and_carries_parameters() {
    let source = "
def setup(ctx):
    global limit
    limit = ctx.params['limit']
def transform(batch: list[dict], ctx):
    ctx.log('looking', level='warning', rows=len(batch))
    ctx.reject(2, 'too_big', f'over {limit}')
    ctx.reject(2, 'again')
    ctx.reject(0, 'first')
    try:
        ctx.reject(3, 'nobody')
    except ValueError as error:
        assert 'no event' in str(error)
    else:
        assert False
    return [{k: v for k, v in e.items() if k != 'count'} for e in batch]
";
    let mut worker = in_time(WorkerProcess::spawn(&spec())).await.unwrap();
    let mut with_params = script(source);
    with_params.params.insert("limit".into(), 5.into());
    worker.load(&with_params, &events(0).schema()).await.unwrap();
    let output = worker.transform(&events(3)).await.unwrap();
    assert_eq!(row_numbers(&output.rows), [1]);
    let told: Vec<_> =
        output.rejected.iter().map(|r| (r.row, r.reason.as_str(), r.detail.as_str())).collect();
    assert_eq!(told, [(0, "first", ""), (2, "too_big", "over 5")]);
    worker.stop(DEADLINE).await;

    let by_event = "
def transform(event: dict, ctx):
    del event['count']
    if event['_row'] == 1:
        ctx.reject(event['_row'], 'odd')
    return event
";
    let output = run(by_event, 3).await.unwrap();
    assert_eq!(row_numbers(&output.rows), [0, 2]);
    assert_eq!((output.rejected[0].row, output.rejected[0].reason.as_str()), (1, "odd"));
}

#[tokio::test]
async fn what_the_decorator_says_is_done() {
    let source = "
from millstream import transform

@transform(inputs=['entity_id', 'value'], timeout=0.25, params={'limit': 1, 'step': 2})
def transform(event: dict, ctx):
    del event['count']
    event['value'] = ctx.params['limit'] * 10 + ctx.params['step']
    return event
";
    let mut worker = in_time(WorkerProcess::spawn(&spec())).await.unwrap();
    let mut with_params = script(source);
    with_params.params.insert("limit".into(), 5.into());
    let loaded = worker.load(&with_params, &events(0).schema()).await.unwrap();
    assert_eq!(loaded.timeout, Some(std::time::Duration::from_millis(250)));
    let output = worker.transform(&events(1)).await.unwrap();
    assert_eq!(values(&output.rows), [Some(52.0)], "the configuration's over the script's own");

    let missing = source.replace("'value']", "'valeu']");
    let refused = worker.load(&script(&missing), &events(0).schema()).await.unwrap_err();
    assert!(
        refused.to_string().contains("reads valeu, which its stream does not declare"),
        "{refused}"
    );
    worker.stop(DEADLINE).await;
}

#[tokio::test]
async fn setup_and_teardown_run() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    let source = format!(
        "
import atexit
def write(text):
    with open({note:?}, 'a') as file:
        file.write(text)
atexit.register(write, ' exit')
def setup(ctx): write('setup')
def teardown(ctx): write(' teardown')
def transform(event: dict): ...
"
    );
    let worker = started(&source).await;
    let exit = in_time(worker.stop(DEADLINE)).await;
    assert_eq!(exit, Exit { code: Some(0), signal: None });
    assert_eq!(std::fs::read_to_string(note).unwrap(), "setup teardown exit");
}

#[tokio::test]
async fn scripts_that_do_not_load() {
    let broken = [
        ("def transform(batch)\n    pass", "SyntaxError", "line 1"),
        ("import no_such_package_at_all", "ModuleNotFoundError", "under_test.py\", line 1"),
        ("x = 1", "ImportError: /scripts/under_test.py defines no function `transform`", ""),
        ("async def transform(e: dict): ...", "must be a plain function", ""),
        ("def transform(): ...", "takes no parameter", ""),
        ("def transform(e: dict, lookup): ...", "wants lookup", ""),
        (
            "def setup(ctx): raise RuntimeError('no database')\ndef transform(e: dict): ...",
            "RuntimeError: no database",
            "in setup",
        ),
        ("import sys\nsys.exit(3)", "SystemExit: 3", "under_test.py"),
    ];
    let mut worker = in_time(WorkerProcess::spawn(&spec())).await.unwrap();
    for (source, expected, trace) in broken {
        let refused = in_time(worker.load(&script(source), &events(0).schema())).await.unwrap_err();
        let WorkerError::Import { message, traceback } = refused else {
            panic!("{source}: {refused:?}")
        };
        assert!(message.contains(expected), "{source}: {message}");
        assert!(traceback.contains(trace), "{source}: {traceback}");
        assert!(worker.is_usable());
    }
    let taken = Script::new("json", Path::new("json.py"), EVENT_IDENTITY);
    let refused = in_time(worker.load(&taken, &events(0).schema())).await.unwrap_err();
    assert!(refused.to_string().contains("already has a module"), "{refused}");
    in_time(worker.stop(DEADLINE)).await;
}

#[tokio::test]
async fn columns_without_a_python_value_are_refused_at_load() {
    let nested = DataType::new_list(DataType::Int64, true);
    let schema = Schema::new(vec![Field::new("tags", nested, true)]);
    let mut worker = in_time(WorkerProcess::spawn(&spec())).await.unwrap();
    let refused = worker.load(&script(EVENT_IDENTITY), &schema).await.unwrap_err();
    assert!(
        matches!(&refused, WorkerError::Import { message, .. } if message.contains("\"tags\"")),
        "{refused:?}"
    );
    worker.kill().await;
}

#[tokio::test]
async fn helpers_beside_the_script_can_be_imported() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("my_helpers.py"),
        "def keep(event): event.pop('count'); return event\n",
    )
    .unwrap();
    let path = dir.path().join("under_test.py");
    let source = "from my_helpers import keep\ndef transform(event: dict): return keep(event)\n";
    std::fs::write(&path, source).unwrap();
    let script = Script::read(&path).unwrap();
    // It is the version that runs, not what the files say by then.
    std::fs::write(dir.path().join("my_helpers.py"), "raise SystemExit").unwrap();
    let mut worker = in_time(WorkerProcess::spawn(&spec())).await.unwrap();
    worker.load(&script, &events(0).schema()).await.unwrap();
    assert_identity(&worker.transform(&events(3)).await.unwrap());

    // Another version in the same process.
    let mended = Script::read(&path).unwrap();
    assert_ne!(script.sha256, mended.sha256);
    let error = worker.load(&mended, &events(0).schema()).await.unwrap_err();
    assert!(format!("{error:?}").contains("my_helpers.py"), "{error:?}");
    worker.stop(DEADLINE).await;
}

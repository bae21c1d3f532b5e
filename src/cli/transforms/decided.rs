//! What became of a wish, and what two versions make differently, for people.

use super::{Failure, report::cut, short, table};
use crate::{
    actors::{
        python_worker_supervisor::{Change, Difference, Example},
        transform_deployer::Decided,
    },
    protocol::script_history::ScriptAction,
};

/// How Python begins a traceback.
const TRACEBACK: &str = "Traceback (most recent call last)";

/// Prints what the node decided: a [`Decided`] as it came, or what it says.
///
/// # Errors
/// [`Failure::Check`] when the node refused, after the traceback was printed.
pub fn print(body: &[u8], json: bool) -> Result<(), Failure> {
    let decided: Decided = serde_json::from_slice(body).map_err(anyhow::Error::from)?;
    if json {
        println!("{}", String::from_utf8_lossy(body));
    }
    if decided.action == ScriptAction::Refused {
        return Err(refused(&decided));
    }
    if !json {
        println!("{}", sentence(&decided));
        if let Some(trial) = &decided.trial {
            println!("{trial}");
            trial.difference.iter().for_each(print_examples);
        }
    }
    Ok(())
}

fn refused(decided: &Decided) -> Failure {
    let Told { head, exception, traceback } = told(&decided.reason);
    if !traceback.is_empty() {
        eprintln!("{traceback}");
    }
    if let Some(trial) = decided.trial.as_ref().filter(|trial| trial.difference.is_some()) {
        eprintln!("{trial}");
    }
    let exception = exception.map(|line| format!(": {line}")).unwrap_or_default();
    let (stream, version) = (&decided.stream, short(&decided.version));
    Failure::Check(format!(
        "version {version} is refused: {head}{exception}. `{stream}` goes on as before"
    ))
}

fn sentence(decided: &Decided) -> String {
    let Decided { stream, action, version, from, reason, .. } = decided;
    let version = short(version);
    let after = from.as_deref().map(|from| format!(", after {}", short(from))).unwrap_or_default();
    match action {
        ScriptAction::Deployed => format!("{stream} runs {version} now{after}"),
        ScriptAction::RolledBack => format!("{stream} runs {version} again{after}"),
        ScriptAction::Paused => format!("{stream} is paused at {version}: {reason}"),
        ScriptAction::Resumed => format!("{stream} goes on with {version}"),
        ScriptAction::Reconfigured => format!("{stream} runs {version} with other parameters"),
        ScriptAction::Refused => format!("{stream} refused {version}"),
    }
}

/// A reason in its parts.
struct Told<'a> {
    /// The first line, without the beginning of a traceback.
    head: &'a str,
    /// The exception, when the head ends with the traceback's beginning rather than with it.
    exception: Option<&'a str>,
    /// What stands below the head.
    traceback: &'a str,
}

fn told(reason: &str) -> Told<'_> {
    let ends = [reason.find(TRACEBACK), reason.find('\n')].into_iter().flatten().min();
    let (head, traceback) = reason.split_at(ends.unwrap_or(reason.len()));
    let (head, traceback) = (head.trim_end(), traceback.trim());
    match head.strip_suffix(':') {
        Some(head) => Told { head, exception: traceback.lines().next_back(), traceback },
        None => Told { head, exception: None, traceback },
    }
}

/// A reason as it fits in a cell: the exception, else the first line.
pub fn brief(reason: &str) -> String {
    let Told { head, exception, .. } = told(reason);
    cut(exception.unwrap_or(head))
}

/// The examples of a difference as a table, and how many rows differ besides.
pub fn print_examples(difference: &Difference) {
    let Difference { added, gone, changed, examples, .. } = difference;
    if examples.is_empty() {
        return;
    }
    let columns = ["change", "row", "entity_id", "feature_name", "before", "after"];
    let mut table = table(&columns);
    examples.iter().for_each(|example| {
        table.add_row(cells(example));
    });
    println!("{table}");
    let more = (added + gone + changed).saturating_sub(examples.len());
    if more > 0 {
        println!("… and {more} more rows that differ");
    }
}

fn cells(example: &Example) -> [String; 6] {
    let Example { change, row, entity_id, feature_name, before, after } = example;
    let change = match change {
        Change::Added => "added",
        Change::Gone => "gone",
        Change::Changed => "changed",
    };
    let held = |held: &Option<String>| held.clone().unwrap_or_default();
    let (row, before, after) = (row.to_string(), held(before), held(after));
    [change.to_owned(), row, cut(entity_id), cut(feature_name), before, after]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_by_its_exception() {
        let traceback = format!("{TRACEBACK}:\n  File \"s.py\", line 3, in f\nValueError: no");
        let failed = format!("it fails on 1 of 8 events; first with exception: {traceback}");
        let Told { head, exception, traceback: below } = told(&failed);
        assert_eq!(head, "it fails on 1 of 8 events; first with exception");
        assert_eq!((exception, below), (Some("ValueError: no"), traceback.as_str()));
        assert_eq!(brief(&failed), "ValueError: no");

        let not_loaded = format!("the script cannot be loaded: ImportError: x\n{traceback}\n");
        let Told { head, exception, traceback: below } = told(&not_loaded);
        assert_eq!((head, exception), ("the script cannot be loaded: ImportError: x", None));
        assert_eq!(below, traceback);

        assert_eq!(brief("an operator's wish"), "an operator's wish");
        assert_eq!(brief("worker_exit: last words\nof a worker"), "worker_exit: last words");
        assert_eq!(brief(""), "");
    }

    #[test]
    fn an_example_says_what_was_and_what_is() {
        let example = Example {
            change: Change::Gone,
            row: 7,
            entity_id: "e".into(),
            feature_name: "f".into(),
            before: Some("1 at 2024-05-01T10:00:00Z".into()),
            after: None,
        };
        assert_eq!(cells(&example), ["gone", "7", "e", "f", "1 at 2024-05-01T10:00:00Z", ""]);
    }
}

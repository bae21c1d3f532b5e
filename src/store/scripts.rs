//! The history of the streams' scripts, and the texts of all versions.

use super::StoreError;
use crate::{
    messages::{NoteScript, ScriptNoted},
    protocol::script_history::{ScriptAction, ScriptEvent, ScriptState},
};
use duckdb::{Connection, OptionalExt, params};
use serde_json::Value;

/// Appends an event to a stream's history, inside of a transaction, and keeps the version's texts.
/// An event that is known is left as it is: the same request may come twice.
///
/// # Errors
/// [`StoreError::Statement`].
pub fn note(
    connection: &Connection,
    note: &NoteScript,
    stamp_us: i64,
) -> Result<ScriptNoted, StoreError> {
    let known: Option<i64> = connection
        .query_row("SELECT seq FROM transform_history WHERE note_id = ?", [&note.note_id], |r| {
            r.get(0)
        })
        .optional()
        .map_err(StoreError::Statement)?;
    let state = state_of(connection, &note.stream)?;
    if known.is_some() {
        return Ok(ScriptNoted { taken: true, state });
    }
    if !state.admits(note.action, note.expected.as_deref()) {
        return Ok(ScriptNoted { taken: false, state });
    }
    keep_text(connection, note, stamp_us)?;
    // Values that were read from JSON: there is nothing that could not be written.
    let params = note.params.as_ref().map(|p| serde_json::to_string(p).unwrap_or_default());
    connection
        .execute(
            "INSERT INTO transform_history
             SELECT coalesce(max(seq), 0) + 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, make_timestamptz(?)
             FROM transform_history",
            params![
                note.note_id,
                note.stream,
                note.action.name(),
                note.sha256,
                state.active,
                note.reason,
                params,
                note.trial.as_ref().map(Value::to_string),
                note.node,
                stamp_us
            ],
        )
        .map_err(StoreError::Statement)?;
    Ok(ScriptNoted { taken: true, state: state_of(connection, &note.stream)? })
}

fn keep_text(connection: &Connection, note: &NoteScript, stamp_us: i64) -> Result<(), StoreError> {
    let Some(text) = &note.text else { return Ok(()) };
    let modules = serde_json::to_string(&text.modules).unwrap_or_default();
    connection
        .execute(
            "INSERT INTO transform_versions
             SELECT ?, ?, ?, ?, ?, make_timestamptz(?)
             WHERE NOT EXISTS (FROM transform_versions WHERE script_sha256 = ?)",
            params![note.sha256, text.name, text.source, modules, note.node, stamp_us, note.sha256],
        )
        .map_err(StoreError::Statement)?;
    Ok(())
}

/// What a stream runs.
fn state_of(connection: &Connection, stream: &str) -> Result<ScriptState, StoreError> {
    let mut statement = connection
        .prepare(
            "SELECT seq, action, script_sha256, reason, params, epoch_us(noted_at)
             FROM transform_history WHERE stream = ? ORDER BY seq",
        )
        .map_err(StoreError::Statement)?;
    type Line = (i64, String, String, String, Option<String>, i64);
    let lines = statement
        .query_map([stream], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?))
        })
        .map_err(StoreError::Statement)?;
    let mut state = ScriptState::default();
    for line in lines {
        let (seq, action, sha256, reason, params, at_us): Line =
            line.map_err(StoreError::Statement)?;
        // An action of a later version of this program changes nothing that this one knows.
        let Some(action) = ScriptAction::named(&action) else { continue };
        let params = params.and_then(|json| serde_json::from_str(&json).ok());
        state.apply(ScriptEvent { seq, at_us, action, sha256: &sha256, reason: &reason, params });
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{messages::ScriptText, store::schema::DDL};

    fn event(id: &str, action: ScriptAction, sha256: &str, expected: Option<&str>) -> NoteScript {
        let text = ScriptText { name: "s".into(), source: format!("# {sha256}"), modules: vec![] };
        NoteScript {
            note_id: id.into(),
            stream: "clicks".into(),
            action,
            sha256: sha256.into(),
            text: (action != ScriptAction::RolledBack).then_some(text),
            expected: expected.map(Into::into),
            reason: "because".into(),
            params: None,
            trial: Some(serde_json::json!({ "rows": 3 })),
            node: "n".into(),
        }
    }

    #[test]
    fn a_history_is_kept_once_with_all_texts() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(DDL).unwrap();
        let note = |event: &NoteScript, at| super::note(&connection, event, at).unwrap();
        let first = event("1", ScriptAction::Deployed, "a", None);
        for at in [10, 11] {
            let noted = note(&first, at);
            assert!(noted.taken);
            assert_eq!((noted.state.seq, noted.state.active.as_deref()), (1, Some("a")));
        }
        let late = note(&event("2", ScriptAction::Deployed, "b", None), 12);
        assert!(!late.taken, "another one is active by then");
        assert_eq!(late.state.active.as_deref(), Some("a"));
        assert!(note(&event("3", ScriptAction::Deployed, "b", Some("a")), 13).taken);
        assert!(note(&event("4", ScriptAction::Refused, "c", Some("b")), 14).taken);
        let back = note(&event("5", ScriptAction::RolledBack, "a", Some("b")), 15);
        assert_eq!((back.state.seq, back.state.active.as_deref()), (4, Some("a")));

        let count = |sql: &str| connection.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM transform_versions"), 3);
        assert_eq!(count("SELECT count(*) FROM transform_history"), 4);
        let other =
            NoteScript { stream: "other".into(), ..event("6", ScriptAction::Deployed, "a", None) };
        assert_eq!(note(&other, 16).state.seq, 5, "numbers are those of the store");
        assert_eq!(count("SELECT count(*) FROM transform_versions"), 3);
    }

    #[test]
    fn parameters_are_kept_with_the_event() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(DDL).unwrap();
        let params = serde_json::from_str(r#"{"k": [1, "ä"]}"#).ok();
        let set = NoteScript { params, ..event("1", ScriptAction::Reconfigured, "a", None) };
        let noted = note(&connection, &set, 10).unwrap();
        assert_eq!(noted.state.params, set.params);
    }
}

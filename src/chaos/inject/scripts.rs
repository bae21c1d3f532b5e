//! Scripts that are saved while data flows: other texts that do the same, and broken ones.

use super::{Done, Trouble, nothing};
use crate::chaos::{plan::Planned, rig::Rig};
use anyhow::Context as _;
use serde_json::json;
use std::{path::Path, time::Duration};

/// How long a roll back may take: it waits for a permit.
const DECIDED_WITHIN: Duration = Duration::from_secs(45);

/// What is put before or behind a script to break it.
const BREAKS: [(&str, &str); 4] = [
    ("def transform(:\n", ""),
    ("import there_is_no_such_module\n", ""),
    ("", "\n\ndef transform(batch):\n    raise ValueError('chaos')\n"),
    ("", "\n\ndef transform(batch):\n    return batch.head(0).drop_nulls().select([])\n"),
];

/// Saves or rolls back the script of one of the streams.
pub(super) fn disturb(rig: &Rig, planned: &Planned) -> Done {
    let stream = planned.pick as usize % rig.config.streams.len();
    if planned.kind == "script-rollback" {
        return roll_back(rig, &rig.config.streams[stream].name, planned);
    }
    let file = rig.config.script_file(stream);
    let sound = original(&file)?;
    let text = if planned.kind == "script-swap" {
        format!("{sound}\n# {}\n", planned.pick)
    } else {
        let (before, behind) = BREAKS[planned.pick as usize / 7 % BREAKS.len()];
        format!("{before}{sound}{behind}# {}\n", planned.pick)
    };
    save(&file, &text)?;
    Ok(None)
}

/// The text that the run began with, kept beside the file.
fn original(file: &Path) -> anyhow::Result<String> {
    let kept = file.with_extension("py.original");
    if !kept.exists() {
        std::fs::copy(file, &kept)?;
    }
    Ok(std::fs::read_to_string(kept)?)
}

/// As most editors do: a new file takes the place of the old one.
fn save(file: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = file.with_extension("py.tmp");
    std::fs::write(&fresh, text)?;
    std::fs::rename(&fresh, file).context("the script cannot be saved")
}

fn roll_back(rig: &Rig, stream: &str, planned: &Planned) -> Done {
    let (node, _) = rig.addresses.process[planned.pick as usize / 2 % 2];
    let body = json!({ "stream": stream });
    let asked = rig.http.post(node, "/api/transforms/rollback", &body, DECIDED_WITHIN);
    match asked {
        Ok((200, _)) => Ok(None),
        // There is no version before, or another one was decided on meanwhile.
        Ok((status, answer)) => nothing(format!("{status}: {answer}")),
        // The node was ended over it; what it began is decided by what the store has noted.
        Err(error) => Err(Trouble::Nothing(format!("the node did not answer: {error:#}"))),
    }
}

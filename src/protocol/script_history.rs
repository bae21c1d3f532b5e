//! Which script version a stream runs, as its history says. The store appends to the history, one
//! event after the other; everything else is read off it.
//!
//! | event | active version | version to fall back to | paused | parameters |
//! |---|---|---|---|---|
//! | `deployed` | the event's | the one that was active | | |
//! | `rolled_back` | the event's | the newest that was active before it and is not the one that is left | | |
//! | `refused` | | | | |
//! | `paused`, `resumed` | | | yes, no | |
//! | `reconfigured` | | | | the event's |
//!
//! An event that changes the active version, or its parameters, names the one that it takes the place of. When another
//! one is active by then — two nodes deployed at once — it is not taken.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Versions to fall back to that are remembered.
const MOST_EARLIER: usize = 16;

/// What happened to a stream's script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScriptAction {
    /// A version took over.
    Deployed,
    /// An earlier version took over again.
    RolledBack,
    /// A version was tried and did not take over.
    Refused,
    /// The stream's events wait.
    Paused,
    /// They go on.
    Resumed,
    /// The script's parameters were changed.
    Reconfigured,
}

impl ScriptAction {
    /// Its name in tables and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployed => "deployed",
            Self::RolledBack => "rolled_back",
            Self::Refused => "refused",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Reconfigured => "reconfigured",
        }
    }

    /// The action of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        use ScriptAction::{Deployed, Paused, Reconfigured, Refused, Resumed, RolledBack};
        let all = [Deployed, RolledBack, Refused, Paused, Resumed, Reconfigured];
        all.into_iter().find(|action| action.name() == name)
    }

    /// Whether another version is active afterwards.
    #[must_use]
    pub fn switches(self) -> bool {
        matches!(self, Self::Deployed | Self::RolledBack)
    }
}

/// What a stream runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptState {
    /// Number of the last event; a state with a greater one is newer.
    pub seq: i64,
    /// The version that runs; `None`: no event of the stream was ever processed.
    pub active: Option<String>,
    /// Versions that were active before and can be fallen back to, the best one last.
    pub earlier: Vec<String>,
    /// When it took over, UTC microseconds.
    pub since_us: i64,
    /// Why the stream's events wait; `None`: they do not.
    pub paused: Option<String>,
    /// Parameters in the place of the configuration's.
    pub params: Option<Map<String, Value>>,
}

/// One event, as far as the state goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptEvent<'a> {
    /// Its number.
    pub seq: i64,
    /// When, UTC microseconds.
    pub at_us: i64,
    /// What happened.
    pub action: ScriptAction,
    /// The version that it is about.
    pub sha256: &'a str,
    /// Why.
    pub reason: &'a str,
    /// With [`ScriptAction::Reconfigured`], the parameters.
    pub params: Option<Map<String, Value>>,
}

impl ScriptState {
    /// The version to go back to.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        self.fallbacks().next()
    }

    /// The versions that can be fallen back to, the best one first.
    pub fn fallbacks(&self) -> impl Iterator<Item = &str> {
        self.earlier.iter().rev().map(String::as_str)
    }

    /// Whether an event may be appended that takes the place of `expected`.
    #[must_use]
    pub fn admits(&self, action: ScriptAction, expected: Option<&str>) -> bool {
        let changes = action.switches() || action == ScriptAction::Reconfigured;
        !changes || self.active.as_deref() == expected
    }

    /// The state after an event, by the table of the module.
    pub fn apply(&mut self, event: ScriptEvent<'_>) {
        self.seq = event.seq;
        match event.action {
            ScriptAction::Deployed | ScriptAction::RolledBack => {
                let left = self.active.replace(event.sha256.to_owned());
                let left = left.filter(|left| left != event.sha256);
                self.earlier.retain(|v| v != event.sha256 && Some(v) != left.as_ref());
                // Whoever rolls back has a reason not to come back to it.
                if event.action == ScriptAction::Deployed {
                    self.earlier.extend(left);
                    let surplus = self.earlier.len().saturating_sub(MOST_EARLIER);
                    self.earlier.drain(..surplus);
                }
                self.since_us = event.at_us;
            }
            ScriptAction::Paused => self.paused = Some(event.reason.to_owned()),
            ScriptAction::Resumed => self.paused = None,
            ScriptAction::Reconfigured => self.params = event.params,
            ScriptAction::Refused => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ScriptAction::{Deployed, Paused, Reconfigured, Refused, Resumed, RolledBack};

    fn after(events: &[(ScriptAction, &str)]) -> ScriptState {
        let mut state = ScriptState::default();
        for (seq, (action, sha256)) in (1..).zip(events) {
            let params = (*action == Reconfigured).then(Map::new);
            let at_us = 100 * seq;
            state.apply(ScriptEvent { seq, at_us, action: *action, sha256, reason: "why", params });
        }
        state
    }

    fn versions(events: &[(ScriptAction, &str)]) -> (Option<String>, Vec<String>) {
        let state = after(events);
        (state.active, state.earlier)
    }

    fn expect(active: &str, earlier: &[&str]) -> (Option<String>, Vec<String>) {
        (Some(active.into()), earlier.iter().map(|v| (*v).to_owned()).collect())
    }

    #[test]
    fn each_row_of_the_table() {
        assert_eq!(versions(&[]), (None, vec![]));
        assert_eq!(versions(&[(Deployed, "a")]), expect("a", &[]));
        assert_eq!(versions(&[(Deployed, "a"), (Deployed, "b")]), expect("b", &["a"]));
        assert_eq!(versions(&[(Deployed, "a"), (Refused, "b")]), expect("a", &[]));
        let rolled_back = [(Deployed, "a"), (Deployed, "b"), (Deployed, "c"), (RolledBack, "b")];
        assert_eq!(versions(&rolled_back), expect("b", &["a"]), "c is left for a reason");
        let further = [&rolled_back[..], &[(RolledBack, "a")]].concat();
        assert_eq!(versions(&further), expect("a", &[]));
        let again = [&rolled_back[..], &[(Deployed, "c")]].concat();
        assert_eq!(versions(&again), expect("c", &["a", "b"]));
        let same = [(Deployed, "a"), (Deployed, "b"), (Deployed, "b"), (Deployed, "a")];
        assert_eq!(versions(&same), expect("a", &["b"]));

        assert_eq!(after(&[(Paused, "")]).paused.as_deref(), Some("why"));
        assert_eq!(after(&[(Paused, ""), (Deployed, "a")]).paused.as_deref(), Some("why"));
        assert_eq!(after(&[(Paused, ""), (Resumed, "")]).paused, None);
        assert_eq!(after(&[(Reconfigured, "a"), (Deployed, "b")]).params, Some(Map::new()));
        let state = after(&[(Deployed, "a"), (Deployed, "b"), (Paused, "")]);
        assert_eq!((state.seq, state.since_us), (3, 200));
        let many: Vec<String> = (0..40).map(|n| n.to_string()).collect();
        let many: Vec<_> = many.iter().map(|n| (Deployed, n.as_str())).collect();
        let state = after(&many);
        assert_eq!((state.earlier.len(), state.fallback()), (MOST_EARLIER, Some("38")));
    }

    #[test]
    fn what_takes_a_place_must_name_who_had_it() {
        let state = after(&[(Deployed, "a")]);
        assert!(state.admits(Deployed, Some("a")) && state.admits(RolledBack, Some("a")));
        assert!(!state.admits(Deployed, Some("b")) && !state.admits(Deployed, None));
        assert!(state.admits(Reconfigured, Some("a")) && !state.admits(Reconfigured, Some("b")));
        assert!(state.admits(Paused, None) && state.admits(Refused, Some("b")));
        assert!(ScriptState::default().admits(Deployed, None));
    }

    #[test]
    fn names_lead_back() {
        for action in [Deployed, RolledBack, Refused, Paused, Resumed, Reconfigured] {
            assert_eq!(ScriptAction::named(action.name()), Some(action));
            assert_eq!(serde_json::to_value(action).unwrap(), action.name());
        }
        assert_eq!(ScriptAction::named("danced"), None);
    }
}

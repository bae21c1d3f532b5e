//! Generations: how the store notices that Redis lost data, and what it puts online again.
//!
//! Redis may lose everything (FLUSHALL, a fail-over to an empty replica) or the end of its command
//! log (a kill with `appendfsync everysec`). The store leaves marks in it and looks at them when it
//! connects, and whenever a mark may be gone:
//!
//! | mark | what it tells |
//! |---|---|
//! | `{ns}:generation` | absent: everything is lost |
//! | `{ns}:run_id` | another one than the server's: the server was started since, so the end of its log may be lost |
//! | `{ns}:online_to` | values of batches up to this one are online; written after them, so where it survived, so did they |
//! | `{ns}:critical` | which features the online store was filled with |
//!
//! The rows of this table are tried from above; the first that fits decides.
//!
//! | found | action |
//! |---|---|
//! | no generation | renew, replay everything |
//! | another fingerprint of the critical lists, or none | renew, replay everything |
//! | no `online_to`, or one beyond the last batch (DuckDB was restored) | renew, replay everything |
//! | no known run, or another one than the server's | renew, replay after `online_to` |
//! | `online_to` before the last batch (the store ended between COMMIT and answer) | replay after `online_to` |
//! | else | keep |

/// What the store finds when it looks at Redis.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The server's run, as `INFO server` tells it now.
    pub run_id: String,
    /// The run under which the store last looked: key `{ns}:run_id`.
    pub known_run_id: Option<String>,
    /// Key `{ns}:generation`.
    pub generation: Option<String>,
    /// The last `batch_seq` known to be online: key `{ns}:online_to`, which the store writes with
    /// its answers.
    pub online_to: Option<i64>,
    /// Fingerprint of the critical lists that the online store was filled under: key
    /// `{ns}:critical`.
    pub critical: Option<String>,
}

/// What the store does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing was lost.
    Keep,
    /// The same Redis, but the store ended between COMMIT and answer: the newest critical values of
    /// the batches after this one are put online again.
    Replay {
        /// The last batch that needs no repetition; 0 for none.
        after_batch_seq: i64,
    },
    /// A new generation first, so that every online write under the old one is repeated by the
    /// store, and no permit for a lease time; then as [`Action::Replay`].
    Renew {
        /// The last batch that needs no repetition; 0 for none.
        after_batch_seq: i64,
    },
}

/// Decides by the table of the module. `last_batch_seq` is the last batch in DuckDB (0 for none),
/// `critical` the fingerprint of the critical lists as they are configured now.
#[must_use]
pub fn action(found: &Found, last_batch_seq: i64, critical: &str) -> Action {
    let everything = Action::Renew { after_batch_seq: 0 };
    if found.generation.is_none() || found.critical.as_deref() != Some(critical) {
        return everything;
    }
    let Some(online_to) = found.online_to.filter(|to| *to <= last_batch_seq) else {
        return everything;
    };
    if found.known_run_id.as_ref() != Some(&found.run_id) {
        Action::Renew { after_batch_seq: online_to }
    } else if online_to < last_batch_seq {
        Action::Replay { after_batch_seq: online_to }
    } else {
        Action::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything in order, with 10 batches online.
    fn intact() -> Found {
        Found {
            run_id: "r1".into(),
            known_run_id: Some("r1".into()),
            generation: Some("g1".into()),
            online_to: Some(10),
            critical: Some("c1".into()),
        }
    }

    fn after(change: impl FnOnce(&mut Found)) -> Action {
        let mut found = intact();
        change(&mut found);
        action(&found, 10, "c1")
    }

    #[test]
    fn each_row_of_the_table() {
        let renew = |after_batch_seq| Action::Renew { after_batch_seq };
        assert_eq!(after(|_| ()), Action::Keep);
        assert_eq!(after(|f| f.generation = None), renew(0));
        assert_eq!(after(|f| f.critical = Some("c2".into())), renew(0));
        assert_eq!(after(|f| f.critical = None), renew(0));
        assert_eq!(after(|f| f.online_to = None), renew(0));
        assert_eq!(after(|f| f.online_to = Some(11)), renew(0));
        assert_eq!(after(|f| f.run_id = "r2".into()), renew(10));
        assert_eq!(after(|f| f.known_run_id = None), renew(10));
        assert_eq!(after(|f| f.online_to = Some(7)), Action::Replay { after_batch_seq: 7 });
        assert_eq!(action(&Found::default(), 0, "c1"), renew(0), "a Redis never seen before");
    }

    #[test]
    fn what_needs_everything_wins_over_a_smaller_replay() {
        let renew = Action::Renew { after_batch_seq: 0 };
        let restarted = |f: &mut Found| f.run_id = "r2".into();
        for change in [
            (|f| f.generation = None) as fn(&mut Found),
            |f| f.critical = None,
            |f| f.online_to = None,
            |f| f.online_to = Some(11),
        ] {
            let both = |f: &mut Found| {
                restarted(f);
                change(f);
            };
            assert_eq!(after(both), renew);
        }
        let behind = |f: &mut Found| {
            restarted(f);
            f.online_to = Some(7);
        };
        assert_eq!(after(behind), Action::Renew { after_batch_seq: 7 });
    }

    /// One command of the log, as far as it matters here.
    #[derive(Debug, Clone, Copy)]
    enum Command {
        /// The online value of a batch.
        Value(i64),
        /// The mark behind it.
        OnlineTo(i64),
    }

    fn any_found() -> impl Strategy<Value = Found> {
        let text = || prop_oneof!["a", "b"];
        let maybe = || prop::option::of(prop_oneof!["a", "b"]);
        (text(), maybe(), maybe(), prop::option::of(0i64..6), maybe()).prop_map(
            |(run_id, known_run_id, generation, online_to, critical)| Found {
                run_id,
                known_run_id,
                generation,
                online_to,
                critical,
            },
        )
    }

    proptest! {
        /// Whatever end of the command log is lost with a restart, the replay covers every batch
        /// whose value went with it.
        #[test]
        fn a_replay_covers_whatever_a_restart_lost(
            batches in 1i64..30,
            step in 1i64..5,
            kept in any::<prop::sample::Index>(),
        ) {
            let mut log = Vec::new();
            for batch in 1..=batches {
                log.push(Command::Value(batch));
                if batch % step == 0 {
                    log.push(Command::OnlineTo(batch));
                }
            }
            let (mut online, mut online_to) = (Vec::new(), Some(0));
            for command in &log[..kept.index(log.len() + 1)] {
                match command {
                    Command::Value(batch) => online.push(*batch),
                    Command::OnlineTo(batch) => online_to = Some(*batch),
                }
            }
            let found = Found { run_id: "r2".into(), online_to, ..intact() };
            let Action::Renew { after_batch_seq } = action(&found, batches, "c1") else {
                return Err(TestCaseError::fail("a restart must renew"));
            };
            online.extend(after_batch_seq + 1..=batches);
            for batch in 1..=batches {
                prop_assert!(online.contains(&batch), "batch {} is not online", batch);
            }
        }

        /// No replay starts behind what DuckDB has, and whoever did what was asked for, and left
        /// the marks, has nothing more to do.
        #[test]
        fn what_was_done_need_not_be_done_again(found in any_found(), last in 0i64..6) {
            match action(&found, last, "a") {
                Action::Keep => prop_assert_eq!(found.online_to, Some(last)),
                Action::Replay { after_batch_seq } | Action::Renew { after_batch_seq } => {
                    prop_assert!((0..=last).contains(&after_batch_seq));
                }
            }
            let mended = Found {
                known_run_id: Some(found.run_id.clone()),
                generation: Some("fresh".into()),
                online_to: Some(last),
                critical: Some("a".into()),
                run_id: found.run_id,
            };
            prop_assert_eq!(action(&mended, last, "a"), Action::Keep);
        }
    }
}

//! The judge of `millstream chaos`, asked by tests.

use super::Bench;
use millstream::{
    actors::generator::Expected,
    chaos::judge::{self, Online},
    queue::Keys,
    report::Report,
    store::audit::{Check, audit},
};
use std::time::Duration;

impl Bench {
    /// Everything that can be said of the closed database and of a Redis that is still there.
    pub fn judge(&self, expected: &Expected) -> Report {
        let keys = Keys::new(&self.config.node.namespace);
        let online =
            Online { url: &self.config.redis.url, keys: &keys, streams: &self.config.streams };
        let online = (!self.config.redis.url.is_empty()).then_some(online);
        judge::judge(&self.closed_store(), expected, online, Duration::from_secs(1)).unwrap()
    }

    /// The same for a test that sent events of its own: ledger and tables, duplicates, order, dead
    /// letters. How many rows and letters there must be the test knows.
    pub fn judge_books(&self) {
        let store = self.closed_store();
        let mut checks = audit(&store, 0).unwrap().checks;
        checks.push(judge::no_position_is_skipped(&store).unwrap());
        checks.push(judge::order_of_batches(&store).unwrap());
        checks.push(judge::dead_letters_complete(&store).unwrap());
        let broken: Vec<&Check> = checks.iter().filter(|check| !check.ok).collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    /// As [`Self::judge`], and nothing may be wrong.
    pub fn judge_well(&self, expected: &Expected) -> Report {
        let report = self.judge(expected);
        assert!(report.ok, "{report:#?}");
        assert_eq!((report.lost, report.duplicated), (0, 0));
        report
    }
}

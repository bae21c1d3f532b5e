//! What a transaction did, in the traces of the batches whose writes it took.

use crate::{
    messages::WriteRequest,
    store::{StoreError, writer::Committed},
    telemetry::traces::{self, Step},
};
use std::time::Instant;

/// Tells of a transaction that took these writes together and has just ended.
pub(super) fn tell(
    writes: &[&WriteRequest],
    began: Instant,
    committed: &Result<Committed, StoreError>,
) {
    if !traces::are_exported() {
        return;
    }
    for (i, write) in writes.iter().enumerate() {
        let step = Step::commit(&write.header, began).count("writes_together", writes.len());
        match committed {
            Ok(done) => {
                let verdicts = done.verdicts.get(i).into_iter().flatten();
                step.answered(verdicts.map(|verdict| verdict.decision));
            }
            Err(error) => step.fail(&error.to_string()),
        }
    }
}

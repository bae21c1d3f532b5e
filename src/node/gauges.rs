//! Gauges of the node as a whole, which nobody's work sets.

use super::{NodeView, Role};
use crate::telemetry::{self, catalogue as m};
use std::{path::Path, time::Duration};

const EVERY: Duration = Duration::from_secs(2);
/// What does not answer for so long is not ready.
const PATIENCE: Duration = Duration::from_secs(1);

/// What can be not ready, see [`NodeView::not_ready`].
pub(crate) const COMPONENTS: [&str; 3] = ["redis", "actors", "kafka"];

/// Keeps the gauges, and the histograms' buffers small when nobody scrapes; never ends.
pub(super) async fn keep(view: NodeView) {
    loop {
        match tokio::time::timeout(PATIENCE, view.not_ready()).await {
            Ok(missing) => {
                for component in COMPONENTS {
                    telemetry::ready(component, missing.iter().all(|(c, _)| *c != component));
                }
            }
            // The only one that is asked over a network.
            Err(_) => telemetry::ready("redis", false),
        }
        if view.roles.contains(&Role::Store) {
            show_room("database", view.config.database().parent());
        }
        if view.roles.contains(&Role::Process) {
            show_room("spool", Some(&view.config.spool()));
        }
        telemetry::upkeep();
        tokio::time::sleep(EVERY).await;
    }
}

/// What is left for us: what is kept for the superuser is not.
fn show_room(what: &'static str, folder: Option<&Path>) {
    let Some(Ok(of)) = folder.map(rustix::fs::statvfs) else { return };
    let free = of.f_bavail.saturating_mul(of.f_frsize);
    metrics::gauge!(m::DISK_FREE, "what" => what).set(free as f64);
}

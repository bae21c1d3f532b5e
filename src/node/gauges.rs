//! Gauges of the node as a whole, which nobody's work sets.

use super::{NodeView, Role};
use crate::telemetry::{self, catalogue as m};
use std::{path::Path, time::Duration};

const EVERY: Duration = Duration::from_secs(2);

/// What can be not ready, see [`NodeView::not_ready`].
pub(crate) const COMPONENTS: [&str; 3] = ["redis", "actors", "kafka"];

/// Keeps the gauges, and the histograms' buffers small when nobody scrapes; never ends.
pub(super) async fn keep(view: NodeView) {
    loop {
        let missing = view.not_ready().await;
        for component in COMPONENTS {
            telemetry::ready(component, missing.iter().all(|(c, _)| *c != component));
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

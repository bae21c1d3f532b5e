//! What nodes tell of themselves: that it is all there, that it is true, and that it answers what
//! people ask of it.

mod bottleneck;
mod catalogue;
mod live;
mod logs;
mod traces;
mod truth;

use std::collections::BTreeMap;

/// The samples of a scrape: series with its labels, and value.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series, value.parse().unwrap())
        })
        .collect()
}

//! When a worker is old: its process leaves in good order, and the next batch gets a fresh one.
//!
//! | the process | answer |
//! |---|---|
//! | has had `python.recycle_batches` batches (0: any number) | old |
//! | has grown by `python.recycle_growth_mib` since its first batch (0: by any amount) | old |
//! | else | goes on |
//!
//! The first batch counts as the beginning because scripts load what they need lazily. A leak is
//! bounded so, without a word to whoever wrote the script but the metric's cause.

use crate::config::PythonConfig;

/// What makes a worker old.
#[derive(Debug, Clone, Copy)]
pub struct AgeLimits {
    /// Batches of one process; 0: any number.
    pub batches: u64,
    /// Growth of its resident memory since its first batch, in bytes; 0: any.
    pub growth: u64,
}

impl AgeLimits {
    /// As the configuration says.
    #[must_use]
    pub fn of(config: &PythonConfig) -> Self {
        Self { batches: config.recycle_batches, growth: config.recycle_growth_mib << 20 }
    }
}

/// What a process has behind it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Age {
    /// Batches that went through.
    pub batches: u64,
    /// Resident memory now, in bytes; 0: not known.
    pub resident: u64,
    at_first: u64,
}

impl Age {
    /// A batch went through, and the process has `resident` bytes of memory, when that is known.
    /// The cause for which it is old; `None`: it is not.
    pub fn after_batch(
        &mut self,
        resident: Option<u64>,
        limits: AgeLimits,
    ) -> Option<&'static str> {
        self.batches += 1;
        if let Some(resident) = resident {
            self.resident = resident;
            if self.at_first == 0 {
                self.at_first = resident;
            }
        }
        if limits.batches > 0 && self.batches >= limits.batches {
            return Some("recycled_batches");
        }
        let growth = self.resident.saturating_sub(self.at_first);
        (limits.growth > 0 && growth >= limits.growth).then_some("recycled_memory")
    }
}

/// Resident memory of a process, in bytes; `None`: it is gone, or this system does not say.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AgeLimits = AgeLimits { batches: 4, growth: 100 };

    #[test]
    fn each_row_of_the_table() {
        let mut age = Age::default();
        assert_eq!(age.after_batch(Some(1_000), LIMITS), None, "the beginning");
        assert_eq!(age.after_batch(Some(1_099), LIMITS), None);
        assert_eq!(age.after_batch(None, LIMITS), None, "not known");
        assert_eq!(age.after_batch(Some(1_000), LIMITS), Some("recycled_batches"));

        let mut age = Age::default();
        age.after_batch(Some(1_000), LIMITS);
        assert_eq!(age.after_batch(Some(1_100), LIMITS), Some("recycled_memory"));

        let (mut age, never) = (Age::default(), AgeLimits { batches: 0, growth: 0 });
        for i in 1..1_000 {
            assert_eq!(age.after_batch(Some(i << 30), never), None);
        }
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes(std::process::id()).is_some_and(|n| n > 1 << 20));
    }
}

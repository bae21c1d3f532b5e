//! What happened, one line a step: time, party, what.

/// The lines of one run; nothing is formatted while it is off.
#[derive(Debug)]
pub struct Trace {
    /// Whether lines are kept.
    pub on: bool,
    lines: Vec<String>,
}

impl Trace {
    /// An empty one.
    pub fn new(on: bool) -> Self {
        Self { on, lines: Vec::new() }
    }

    /// Adds a line.
    pub fn push(&mut self, now: u64, who: &str, what: &str) {
        self.lines.push(format!("{now:>6} {who:<7} {what}"));
    }

    /// The last `n` lines.
    pub fn tail(&self, n: usize) -> &[String] {
        &self.lines[self.lines.len().saturating_sub(n)..]
    }
}

/// Adds a line to the trace of a world; the text is made only when somebody will read it.
macro_rules! say {
    ($world:expr, $who:expr, $($what:tt)*) => {
        if $world.trace.on {
            let (now, who, what) = ($world.now, $who.to_string(), format!($($what)*));
            $world.trace.push(now, &who, &what);
        }
    };
}
pub(super) use say;

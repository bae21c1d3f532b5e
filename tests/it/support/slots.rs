//! Who may run beside whom: tests that measure time run alone, all others side by side.

use std::{
    cell::Cell,
    sync::{Condvar, Mutex},
};

#[derive(Default)]
struct Slots {
    /// Threads that hold a shared slot.
    shared: usize,
    /// A test runs alone, or waits until it can.
    alone: bool,
}

static SLOTS: Mutex<Slots> = Mutex::new(Slots { shared: 0, alone: false });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    /// Slots of this thread: a test with two benches must not wait for itself.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// A test's slot; it ends with this.
pub struct Slot(Kind);

enum Kind {
    Alone,
    Shared,
    /// Its thread has a slot already.
    Nested,
}

impl Slot {
    /// Beside others, but not beside a test that measures time.
    pub fn shared() -> Self {
        HELD.set(HELD.get() + 1);
        if HELD.get() > 1 {
            return Self(Kind::Nested);
        }
        let slots = SLOTS.lock().unwrap();
        CHANGED.wait_while(slots, |s| s.alone).unwrap().shared += 1;
        Self(Kind::Shared)
    }

    /// With the machine for itself, as far as these tests go.
    pub fn alone() -> Self {
        assert_eq!(HELD.get(), 0, "a test takes the machine for itself first of all");
        let mut slots = CHANGED.wait_while(SLOTS.lock().unwrap(), |s| s.alone).unwrap();
        slots.alone = true;
        drop(CHANGED.wait_while(slots, |s| s.shared > 0).unwrap());
        HELD.set(1);
        Self(Kind::Alone)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        let mut slots = SLOTS.lock().unwrap();
        match self.0 {
            Kind::Alone => slots.alone = false,
            Kind::Shared => slots.shared -= 1,
            Kind::Nested => {}
        }
        CHANGED.notify_all();
    }
}

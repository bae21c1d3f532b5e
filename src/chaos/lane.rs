//! A part of the system under test with a thread of its own, so that what is done to it is done one
//! after the other, while other parts have their own troubles.
//!
//! The thread stays as long as the lane: Linux ends a child with the thread that started it.

use anyhow::{Context as _, anyhow};
use std::sync::mpsc;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// See the module.
pub struct Lane<S> {
    jobs: Option<mpsc::Sender<Job<S>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl<S> std::fmt::Debug for Lane<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

impl<S: 'static> Lane<S> {
    /// A lane whose state is made on its thread.
    ///
    /// # Errors
    /// That of `make`, or no thread can be had.
    pub fn start(
        name: &str,
        make: impl FnOnce() -> anyhow::Result<S> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job<S>>();
        let (made, is_made) = mpsc::channel();
        let run = move || {
            let mut state = match make() {
                Ok(state) => state,
                Err(error) => return drop(made.send(Err(error))),
            };
            // Whoever starts it waits for exactly this.
            let _ = made.send(Ok(()));
            while let Ok(job) = todo.recv() {
                job(&mut state);
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        is_made.recv().with_context(|| format!("{name} panicked at its start"))??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has something done when what came before is done.
    ///
    /// # Errors
    /// When the lane's thread is gone: something before it panicked.
    pub fn then(&self, job: impl FnOnce(&mut S) + Send + 'static) -> anyhow::Result<()> {
        let jobs = self.jobs.as_ref().context("the lane was stopped")?;
        jobs.send(Box::new(job)).map_err(|_| anyhow!("the lane's thread is gone"))
    }

    /// The same, and waits for its result.
    ///
    /// # Errors
    /// As [`Self::then`].
    pub fn ask<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> R + Send + 'static,
    ) -> anyhow::Result<R> {
        let (done, result) = mpsc::channel();
        // Nobody else can have dropped the receiver.
        self.then(move |state| drop(done.send(job(state))))?;
        result.recv().context("what the lane was to do panicked")
    }
}

impl<S> Drop for Lane<S> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed, and its jobs were not done, which was told then.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_done_in_order() {
        let lane = Lane::start("lane", || Ok(Vec::new())).unwrap();
        for i in 0..10 {
            lane.then(move |done: &mut Vec<i32>| done.push(i)).unwrap();
        }
        assert_eq!(lane.ask(|done| done.clone()).unwrap(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_state_that_cannot_be_made_is_said() {
        let failed = Lane::<()>::start("lane", || Err(anyhow!("no")));
        assert_eq!(failed.unwrap_err().to_string(), "no");
    }

    #[test]
    fn a_panic_is_no_success() {
        let lane = Lane::start("lane", || Ok(())).unwrap();
        assert!(lane.ask(|()| panic!("on purpose")).is_err());
        // The thread is gone, or going.
        while lane.then(|()| ()).is_ok() {
            std::thread::yield_now();
        }
    }
}

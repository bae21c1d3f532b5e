//! A TCP proxy for loopback that has weather.
//!
//! Takes connections on its own address, makes one to the upstream for each, and passes bytes on
//! in both directions, whole and in order. The weather may be changed at any time, from any
//! thread; it holds for connections that live and for those to come, in both directions:
//!
//! | weather | what it does |
//! |---|---|
//! | fair | passes everything on at once |
//! | [`latency`](Proxy::latency) | each byte is so much later, each way; throughput stays, see [`QUEUE_BYTES`] |
//! | [`jitter`](Proxy::jitter) | up to so much more than the latency, at random; the order stays |
//! | [`slice`](Proxy::slice) | pieces of at most so many bytes, a pause between them |
//! | [`bandwidth`](Proxy::bandwidth) | so many bytes a second, for each connection and direction |
//! | [`cut`](Proxy::cut) | nothing passes and nobody is told: connections stay open, new ones are taken and stand still |
//! | [`refuse`](Proxy::refuse) | connections are closed (FIN), new ones at once |
//! | [`reset_all`](Proxy::reset_all) | the connections of now end with RST; new ones are as before |
//! | [`mend`](Proxy::mend) | fair again; what was held back comes at once |
//!
//! The first four add up. An end of one side becomes the same end of the other: a FIN comes after
//! the bytes before it and leaves the way back open, an RST comes at once. An upstream that takes
//! no connection is seen as one that is taken and reset.
//!
//! Times are rounded up to whole milliseconds, as tokio's are. A change is made known at once and
//! acts when the proxy's thread has seen it: bytes that were on their way may still pass.
//!
//! It runs on a thread with a runtime of its own, so that synchronous and asynchronous code can
//! use it alike. In fair weather it passes on some hundred MB/s.

mod connection;
mod lane;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

pub use lane::QUEUE_BYTES;

/// Until a listener that could not accept (no file descriptor is left) tries again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// Whether anything passes at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Passage {
    #[default]
    Open,
    Cut,
    Refused,
}

/// Small pieces with pauses.
#[derive(Debug, Clone, Copy)]
struct Slice {
    max_bytes: usize,
    pause: Duration,
}

/// How it is now.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    passage: Passage,
    latency: Duration,
    jitter: Duration,
    slice: Option<Slice>,
    bytes_per_s: Option<u64>,
}

/// What every connection goes by.
#[derive(Debug, Clone, Copy)]
struct State {
    upstream: SocketAddr,
    weather: Weather,
    /// How often everything was reset: a connection that began under another number ends.
    resets: u64,
}

/// A running proxy. Dropping it closes its listener and all connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    open: Arc<AtomicUsize>,
    /// Dropped, it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one in fair weather. Without `listen` it takes a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the address is taken, or the system gives no thread.
    pub fn start(listen: Option<SocketAddr>, upstream: SocketAddr) -> io::Result<Self> {
        let listen = listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = State { upstream, weather: Weather::default(), resets: 0 };
        let (state, states) = watch::channel(state);
        let (stop, stopped) = oneshot::channel::<()>();
        let open = Arc::<AtomicUsize>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let count = open.clone();
        let thread = std::thread::Builder::new().name("chaos-proxy".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // Nothing is ever sent: it ends when the proxy is dropped.
                    _ = stopped => {}
                    () = accept(listener, states, count) => {}
                }
            });
        })?;
        Ok(Self { address, state, open, stop: Some(stop), thread: Some(thread) })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has taken that are not closed yet.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Where new connections go to; those that live keep theirs.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        self.state.send_modify(|state| state.upstream = upstream);
    }

    /// Makes each byte so much later, each way. Zero takes it back.
    pub fn latency(&self, latency: Duration) {
        self.change(|weather| weather.latency = latency);
    }

    /// Adds up to so much to the latency, at random. Zero takes it back.
    pub fn jitter(&self, jitter: Duration) {
        self.change(|weather| weather.jitter = jitter);
    }

    /// Passes on pieces of at most `max_bytes` (at least one), with a pause after each.
    pub fn slice(&self, max_bytes: usize, pause: Duration) {
        let slice = Slice { max_bytes: max_bytes.max(1), pause };
        self.change(|weather| weather.slice = Some(slice));
    }

    /// Passes on so many bytes a second (at least one), for each connection and direction.
    pub fn bandwidth(&self, bytes_per_s: u64) {
        self.change(|weather| weather.bytes_per_s = Some(bytes_per_s.max(1)));
    }

    /// Lets nothing pass and tells nobody, until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.change(|weather| weather.passage = Passage::Cut);
    }

    /// Closes all connections, and new ones at once, until [`mend`](Self::mend).
    pub fn refuse(&self) {
        self.change(|weather| weather.passage = Passage::Refused);
    }

    /// Ends the connections of now with RST.
    pub fn reset_all(&self) {
        self.state.send_modify(|state| state.resets += 1);
    }

    /// Fair weather again.
    pub fn mend(&self) {
        self.change(|weather| *weather = Weather::default());
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.state.send_modify(|state| change(&mut state.weather));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has closed everything as well.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, states: watch::Receiver<State>, open: Arc<AtomicUsize>) {
    let mut number = 0;
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                number += 1;
                let counted = Counted::new(open.clone());
                let states = states.clone();
                tokio::spawn(async move {
                    connection::serve(client, states, number).await;
                    drop(counted);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
        }
    }
}

/// A connection that is counted as long as this lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

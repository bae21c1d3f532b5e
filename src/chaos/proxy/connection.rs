//! One connection through the proxy, from its client to the upstream and back, to its end.

use super::{Passage, State, lane::Lane};
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    time::Instant,
};

/// What is read at once.
const READ_BYTES: usize = 256 << 10;

/// Why a connection ends before both sides have ended it.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// Both sides see a FIN.
    Closed,
    /// Both sides see an RST: it was wished, or one side has sent one.
    Reset,
}

/// Serves a connection until it ends.
pub(super) async fn serve(mut client: TcpStream, mut states: watch::Receiver<State>, number: u64) {
    let resets = states.borrow_and_update().resets;
    let mut upstream = match connect(&mut states, resets).await {
        Ok(upstream) => upstream,
        Err(ending) => return end(client, ending).await,
    };
    // Without it small pieces would wait for each other; a socket that refuses is gone.
    let _ = client.set_nodelay(true).and(upstream.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_upstream, to_upstream) = upstream.split();
    let passed = tokio::try_join!(
        pass(from_client, to_upstream, states.clone(), resets, 2 * number),
        pass(from_upstream, to_client, states, resets, 2 * number + 1),
    );
    if let Err(ending) = passed {
        tokio::join!(end(client, ending), end(upstream, ending));
    }
}

/// The way to the upstream, once anything may pass.
async fn connect(states: &mut watch::Receiver<State>, resets: u64) -> Result<TcpStream, Ending> {
    loop {
        let state = *states.borrow_and_update();
        if may_pass(&state, resets)? {
            return TcpStream::connect(state.upstream).await.map_err(|_| Ending::Reset);
        }
        // The proxy is gone, and its runtime with it.
        states.changed().await.map_err(|_| Ending::Closed)?;
    }
}

/// Whether bytes may pass now; or that this connection has to end.
fn may_pass(state: &State, resets: u64) -> Result<bool, Ending> {
    match state.weather.passage {
        _ if state.resets != resets => Err(Ending::Reset),
        Passage::Refused => Err(Ending::Closed),
        passage => Ok(passage == Passage::Open),
    }
}

/// One direction, until its sender has ended it and everything before that has passed.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut states: watch::Receiver<State>,
    resets: u64,
    seed: u64,
) -> Result<(), Ending> {
    let broken = |_: io::Error| Ending::Reset;
    let mut lane = Lane::new(seed, Instant::now());
    let mut buffer = vec![0; READ_BYTES];
    let mut ended = false;
    let mut state = *states.borrow_and_update();
    loop {
        let open = may_pass(&state, resets)?;
        let (weather, now) = (&state.weather, Instant::now());
        lane.ripen(now);
        if ended && open && lane.is_empty() {
            return to.shutdown().await.map_err(broken);
        }
        let wakes_at = lane.wakes_at(now);
        let has_room = lane.has_room();
        let bytes = lane.writable(weather, now);
        tokio::select! {
            biased;
            changed = states.changed() => {
                changed.map_err(|_| Ending::Closed)?;
                state = *states.borrow_and_update();
                lane.turn(&state.weather, Instant::now());
            }
            // Before more is read, so that in fair weather a buffer goes through while it is hot.
            written = to.write(bytes), if open && !bytes.is_empty() => {
                lane.written(written.map_err(broken)?, weather, Instant::now());
            }
            read = from.read(&mut buffer), if open && !ended && has_room => {
                let read = read.map_err(broken)?;
                ended = read == 0;
                lane.take(&buffer[..read], weather, Instant::now());
            }
            () = tokio::time::sleep_until(wakes_at.unwrap_or(now)), if open && wakes_at.is_some() => {}
        }
    }
}

/// Ends one side.
async fn end(mut stream: TcpStream, ending: Ending) {
    // Whatever fails here: the socket is closed when it is dropped.
    match ending {
        Ending::Reset => {
            let _ = stream.set_zero_linger();
        }
        Ending::Closed => {
            let _ = stream.shutdown().await;
            // What was not read would make the kernel send an RST behind the FIN.
            let mut unread = [0; 4096];
            while stream.try_read(&mut unread).is_ok_and(|bytes| bytes > 0) {}
        }
    }
}

//! Each weather, before a real server on a thread.

use super::*;
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener as Listener, TcpStream as Stream},
    time::Instant,
};

/// Far longer than anything here takes; a read that needs it all has failed.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long it is looked whether nothing comes.
const NOTHING: Duration = Duration::from_millis(150);

/// A server that sends back what it gets, with a byte of its own before it on each connection.
fn echo(mark: u8) -> SocketAddr {
    serve(move |mut stream| {
        let mut back = stream.try_clone()?;
        back.write_all(&[mark])?;
        std::io::copy(&mut stream, &mut back)?;
        back.shutdown(Shutdown::Write)
    })
}

/// A server with a thread for each connection.
fn serve(each: impl Fn(Stream) -> std::io::Result<()> + Clone + Send + 'static) -> SocketAddr {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, each) = (stream.unwrap(), each.clone());
            // How it ends is seen by the client.
            std::thread::spawn(move || each(stream));
        }
    });
    address
}

fn connect(proxy: &Proxy) -> Stream {
    let stream = Stream::connect(proxy.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A proxy before an echo, and a connection through it that has been served.
fn proxied() -> (Proxy, Stream) {
    let proxy = Proxy::start(None, echo(b'a')).unwrap();
    let mut client = connect(&proxy);
    assert_eq!(read(&mut client, 1), b"a");
    (proxy, client)
}

fn read(stream: &mut Stream, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    stream.read_exact(&mut read).unwrap();
    read
}

fn round_trip(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    assert_eq!(read(stream, bytes.len()), bytes);
}

fn nothing_comes(stream: &mut Stream) {
    stream.set_read_timeout(Some(NOTHING)).unwrap();
    let came = stream.read(&mut [0; 16]);
    assert_eq!(came.unwrap_err().kind(), ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "waited {DEADLINE:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Sends and receives at once; how long it took.
fn stream_through(client: &mut Stream, bytes: usize) -> Duration {
    let sent: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
    let begun = Instant::now();
    let mut writer = client.try_clone().unwrap();
    let back = std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        read(client, bytes)
    });
    assert!(back == sent, "other bytes came back");
    begun.elapsed()
}

#[test]
fn fair_weather_passes_everything_whole_and_fast() {
    let (_proxy, mut client) = proxied();
    let bytes = 128 << 20;
    let took = stream_through(&mut client, bytes);
    eprintln!("{:.0} MB/s each way at once", bytes as f64 / took.as_secs_f64() / 1e6);
}

#[test]
fn latency_is_added_each_way_and_limits_no_throughput() {
    let (proxy, mut client) = proxied();
    let latency = Duration::from_millis(100);
    proxy.latency(latency);
    let begun = Instant::now();
    round_trip(&mut client, b"ping");
    assert!(begun.elapsed() >= 2 * latency, "{:?}", begun.elapsed());
    // One piece after the other has been answered would take 25 s for so many pings.
    let took = stream_through(&mut client, 32 << 20);
    assert!(took >= 2 * latency, "{took:?}");
    assert!(took < DEADLINE / 4, "{took:?}");
    let mut other = connect(&proxy);
    let begun = Instant::now();
    round_trip(
        &mut {
            read(&mut other, 1);
            other
        },
        b"ping",
    );
    assert!(begun.elapsed() >= 2 * latency, "new connections as well");
}

#[test]
fn jitter_and_slices_change_no_byte() {
    let (proxy, mut client) = proxied();
    proxy.jitter(Duration::from_millis(5));
    proxy.slice(7, Duration::ZERO);
    stream_through(&mut client, 100_000);
}

#[test]
fn slices_arrive_one_by_one() {
    let (proxy, mut client) = proxied();
    proxy.slice(1, Duration::from_millis(20));
    client.write_all(b"hello").unwrap();
    let mut pieces = Vec::new();
    while pieces.iter().sum::<usize>() < 5 {
        pieces.push(client.read(&mut [0; 16]).unwrap());
    }
    assert!(pieces.len() > 1, "{pieces:?}");
}

#[test]
fn bandwidth_is_limited() {
    let (proxy, mut client) = proxied();
    proxy.bandwidth(1_000_000);
    let took = stream_through(&mut client, 300_000);
    assert!(took >= Duration::from_millis(250), "{took:?}");
}

#[test]
fn a_cut_line_stands_still_until_it_is_mended() {
    let (proxy, mut client) = proxied();
    proxy.cut();
    let mut new = connect(&proxy);
    wait_until("the new connection to be taken", || proxy.connections() == 2);
    client.write_all(b"held").unwrap();
    new.write_all(b"back").unwrap();
    nothing_comes(&mut client);
    nothing_comes(&mut new);
    proxy.mend();
    assert_eq!(read(&mut client, 4), b"held");
    assert_eq!(read(&mut new, 5), b"aback");
}

#[test]
fn a_refusing_proxy_closes_what_lives_and_what_comes() {
    let (proxy, mut client) = proxied();
    proxy.refuse();
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
    assert_eq!(connect(&proxy).read(&mut [0; 16]).unwrap(), 0);
    wait_until("all to be closed", || proxy.connections() == 0);
    proxy.mend();
    assert_eq!(read(&mut connect(&proxy), 1), b"a");
}

#[test]
fn a_reset_ends_what_lives_and_nothing_that_comes() {
    let (proxy, mut client) = proxied();
    let mut stalled = connect(&proxy);
    assert_eq!(read(&mut stalled, 1), b"a");
    proxy.cut();
    proxy.reset_all();
    for client in [&mut client, &mut stalled] {
        let end = client.read(&mut [0; 16]).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    }
    wait_until("all to be closed", || proxy.connections() == 0);
    proxy.mend();
    let mut new = connect(&proxy);
    assert_eq!(read(&mut new, 1), b"a");
    round_trip(&mut new, b"goes on");
}

#[test]
fn the_upstream_of_new_connections_can_be_changed() {
    let (proxy, mut client) = proxied();
    proxy.set_upstream(echo(b'b'));
    assert_eq!(read(&mut connect(&proxy), 1), b"b");
    round_trip(&mut client, b"still with the first");
}

#[test]
fn an_end_of_one_side_becomes_the_same_end_of_the_other() {
    let (proxy, mut client) = proxied();
    proxy.latency(Duration::from_millis(5));
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last words", "the way back was open");
    wait_until("it to be closed", || proxy.connections() == 0);

    // What it did not read makes a server that closes send an RST.
    let rude = serve(|stream| stream.peek(&mut [0; 1]).map(drop));
    proxy.set_upstream(rude);
    let mut client = connect(&proxy);
    client.write_all(b"unread").unwrap();
    let end = client.read(&mut [0; 16]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn an_upstream_that_is_gone_resets() {
    let gone = Listener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let proxy = Proxy::start(None, gone).unwrap();
    let end = connect(&proxy).read(&mut [0; 16]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_dropped_proxy_closes_everything_and_leaves_its_address() {
    let (proxy, mut client) = proxied();
    let address = proxy.address();
    drop(proxy);
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
    assert!(Stream::connect(address).is_err());
    let again = Proxy::start(Some(address), echo(b'b')).unwrap();
    assert_eq!(read(&mut connect(&again), 1), b"b");
}

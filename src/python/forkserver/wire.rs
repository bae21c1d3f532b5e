//! What a node and its fork server say to each other: one JSON message a packet, with descriptors
//! beside it. Each request has one reply, in turn.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Descriptors that a worker is given: its socket, standard output, standard error.
pub const FDS: usize = 3;
/// The longest message; the folders of packages make the longest one.
const MAX_BYTES: usize = 64 << 10;

/// To the fork server.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first: bring Python up. Answered by [`Reply::Ready`].
    Start {
        /// The folders of packages, as bytes.
        site_dirs: Vec<Vec<u8>>,
        /// How long it stays without a worker and without a request.
        linger_ms: u64,
    },
    /// Start a worker; with [`FDS`] descriptors. Answered by [`Reply::Forked`].
    Fork {
        /// Data memory that it may have, in bytes.
        memory_limit: Option<u64>,
    },
    /// Reap one that has ended. Answered by [`Reply::Reaped`].
    Reap {
        /// Which.
        pid: u32,
    },
}

/// From the fork server.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Python is up.
    Ready,
    /// A worker runs, in a process group of its own.
    Forked {
        /// Its number, and its group's.
        pid: u32,
    },
    /// How a worker had ended.
    Reaped {
        /// Its exit code, if it left by itself.
        code: Option<i32>,
        /// The signal that ended it, if one did.
        signal: Option<i32>,
    },
    /// That was not possible.
    Failed {
        /// In words.
        why: String,
    },
}

/// Sends a message with descriptors, which stay the sender's own, too.
pub fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(&socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Waits for a message; [`io::ErrorKind::UnexpectedEof`] once the other end is gone.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        let into = &mut [IoSliceMut::new(&mut bytes)];
        recvmsg(&socket, into, &mut beside, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((serde_json::from_slice(&bytes[..got.bytes])?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::{Read, Write};

    fn pair() -> (OwnedFd, OwnedFd) {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (a, b) = pair();
        let (mut reading, writing) = io::pipe().unwrap();
        send(&a, &Request::Fork { memory_limit: Some(7) }, &[writing.as_fd()]).unwrap();
        send(&a, &Request::Reap { pid: 3 }, &[]).unwrap();
        drop(writing);
        let (first, fds) = receive::<Request>(&b).unwrap();
        assert!(matches!(first, Request::Fork { memory_limit: Some(7) }), "{first:?}");
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        std::fs::File::from(fd).write_all(b"through").unwrap();
        let mut text = String::new();
        reading.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let (second, fds) = receive::<Request>(&b).unwrap();
        assert!(matches!(second, Request::Reap { pid: 3 }) && fds.is_empty(), "{second:?}");
        drop(a);
        let over = receive::<Request>(&b).unwrap_err();
        assert_eq!(over.kind(), io::ErrorKind::UnexpectedEof);
    }
}

//! How ranks find each other: a unique id is the address of a listener in rank 0's process. Every rank
//! checks in there with the port that it listens on itself, and gets all ports once all are there.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use crate::codes::{INVALID_ARGUMENT, REMOTE_ERROR, Result, SYSTEM_ERROR, failed, misuse};

/// An `ncclUniqueId`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

const MAGIC: [u8; 8] = *b"fakenccl";

/// What a rank says when it checks in: the id's nonce, its rank, how many there are, its port.
const CHECK_IN_BYTES: usize = 8 + 4 + 4 + 2;

pub(crate) fn listen() -> io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

pub(crate) fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Where the ranks of one communicator meet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meeting {
    port: u16,
    pub(crate) nonce: u64,
}

impl UniqueId {
    /// Starts to listen.
    pub(crate) fn create() -> Result<Self> {
        let (listener, port) =
            listen().map_err(|error| failed(SYSTEM_ERROR, format_args!("no listener: {error}")))?;
        // The standard library's only random number.
        let nonce = RandomState::new().build_hasher().finish();
        thread::spawn(move || {
            // Whoever waits for an answer sees that there is none.
            if let Err(error) = gather(&listener, nonce) {
                failed(SYSTEM_ERROR, format_args!("bootstrap: {error}"));
            }
        });
        let mut bytes = [0; 128];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&nonce.to_ne_bytes());
        bytes[16..18].copy_from_slice(&port.to_ne_bytes());
        Ok(Self(bytes))
    }

    pub(crate) fn meeting(&self) -> Result<Meeting> {
        if self.0[..8] != MAGIC {
            return Err(misuse(INVALID_ARGUMENT, "this unique id is none of ncclGetUniqueId's"));
        }
        let mut bytes = &self.0[8..];
        let nonce = u64::from_ne_bytes(take(&mut bytes).map_err(|_| INVALID_ARGUMENT)?);
        let port = u16::from_ne_bytes(take(&mut bytes).map_err(|_| INVALID_ARGUMENT)?);
        Ok(Meeting { port, nonce })
    }
}

impl Meeting {
    /// Checks in. The answer is read from the connection by [`answer`].
    pub(crate) fn check_in(self, rank: usize, ranks: usize, port: u16) -> Result<TcpStream> {
        let mut message = self.nonce.to_ne_bytes().to_vec();
        message.extend((rank as u32).to_ne_bytes());
        message.extend((ranks as u32).to_ne_bytes());
        message.extend(port.to_ne_bytes());
        let stream = connect(self.port).and_then(|mut stream| stream.write_all(&message).map(|()| stream));
        stream.map_err(|error| failed(REMOTE_ERROR, format_args!("bootstrap: rank 0's process: {error}")))
    }
}

/// Everybody's port.
pub(crate) fn answer(mut stream: &TcpStream, ranks: usize) -> Result<Vec<u16>> {
    let mut ports = vec![0; 2 * ranks];
    let read = stream.read_exact(&mut ports);
    read.map_err(|error| failed(REMOTE_ERROR, format_args!("bootstrap: rank 0's process: {error}")))?;
    Ok(ports.as_chunks().0.iter().map(|bytes| u16::from_ne_bytes(*bytes)).collect())
}

/// Until all ranks are there, or two of them contradict each other, which ends it for all.
fn gather(listener: &TcpListener, nonce: u64) -> io::Result<()> {
    let mut present: Vec<Option<(TcpStream, u16)>> = Vec::new();
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut message = [0; CHECK_IN_BYTES];
        stream.read_exact(&mut message)?;
        let mut message = &message[..];
        if u64::from_ne_bytes(take(&mut message)?) != nonce {
            continue;
        }
        let rank = u32::from_ne_bytes(take(&mut message)?) as usize;
        let ranks = u32::from_ne_bytes(take(&mut message)?) as usize;
        let port = u16::from_ne_bytes(take(&mut message)?);
        if present.is_empty() {
            present.resize_with(ranks, || None);
        }
        if present.len() != ranks {
            let (first, second) = (present.len(), ranks);
            misuse(INVALID_ARGUMENT, format_args!("bootstrap: {first} ranks or {second}"));
            return Ok(());
        }
        if present[rank].is_some() {
            misuse(INVALID_ARGUMENT, format_args!("bootstrap: rank {rank} has already checked in"));
            return Ok(());
        }
        present[rank] = Some((stream, port));
        if present.iter().all(Option::is_some) {
            break;
        }
    }
    let ports: Vec<u8> = present.iter().flatten().flat_map(|(_, port)| port.to_ne_bytes()).collect();
    for (mut stream, _) in present.into_iter().flatten() {
        // A rank that has gone meanwhile is missed by those who talk to it.
        let _ = stream.write_all(&ports);
    }
    Ok(())
}

fn take<const N: usize>(bytes: &mut &[u8]) -> io::Result<[u8; N]> {
    let mut taken = [0; N];
    bytes.read_exact(&mut taken)?;
    Ok(taken)
}

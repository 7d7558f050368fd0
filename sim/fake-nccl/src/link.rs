//! Connections between two ranks of a communicator, one for each direction and use. They are made by the
//! first operation that needs them, which therefore waits for its peer, as NCCL's does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};

use crate::bootstrap::connect;
use crate::codes::{Code, INTERNAL_ERROR, REMOTE_ERROR, Result, SYSTEM_ERROR, failed};
use crate::comm::Comm;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    Out,
    In,
}

/// One way between this rank and a peer. Operations from one rank to another and collective ones never
/// share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane {
    pub(crate) peer: usize,
    pub(crate) is_collective: bool,
    pub(crate) direction: Direction,
}

#[derive(Default)]
pub(crate) struct Links {
    /// Made by a peer whose operation nobody here has answered yet.
    incoming: BTreeMap<Lane, Arc<TcpStream>>,
    open: BTreeMap<Lane, Arc<TcpStream>>,
    /// All there are, for an abort.
    sockets: Vec<Weak<TcpStream>>,
}

/// Whose a connection is: the communicator's nonce, the rank that connects, what for.
const HELLO_BYTES: usize = 8 + 4 + 1;

impl Links {
    pub(crate) fn close(&mut self, is_abort: bool) {
        if is_abort {
            for socket in self.sockets.iter().filter_map(Weak::upgrade) {
                // One that the peer has closed is shut down already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        *self = Self::default();
    }
}

impl Comm {
    /// From now on an abort closes the connection.
    pub(crate) fn adopt(&self, stream: TcpStream) -> Result<Arc<TcpStream>> {
        let stream = Arc::new(stream);
        let mut state = self.state();
        if state.is_over {
            return Err(INTERNAL_ERROR);
        }
        state.links.sockets.retain(|socket| socket.strong_count() > 0);
        state.links.sockets.push(Arc::downgrade(&stream));
        Ok(stream)
    }

    /// A peer has connected.
    pub(crate) fn accept(&self, stream: TcpStream) {
        let Ok(stream) = self.adopt(stream) else { return };
        let mut hello = [0; HELLO_BYTES];
        if (&*stream).read_exact(&mut hello).is_err() || hello[..8] != self.nonce.to_ne_bytes() {
            return;
        }
        let [a, b, c, d, is_collective] = [8, 9, 10, 11, 12].map(|index| hello[index]);
        let peer = u32::from_ne_bytes([a, b, c, d]) as usize;
        let lane = Lane { peer, is_collective: is_collective != 0, direction: Direction::In };
        self.state().links.incoming.insert(lane, stream);
        self.changed();
    }

    pub(crate) fn is_connected(&self, lanes: &BTreeSet<Lane>) -> bool {
        let state = self.state();
        lanes.iter().all(|lane| state.links.open.contains_key(lane))
    }

    /// Makes what is missing. Returns when the peers have come to their side of it.
    pub(crate) fn connect(&self, lanes: &BTreeSet<Lane>) -> Result {
        let missing: Vec<Lane> = {
            let state = self.state();
            lanes.iter().filter(|lane| !state.links.open.contains_key(lane)).copied().collect()
        };
        let (outgoing, incoming): (Vec<Lane>, Vec<Lane>) =
            missing.iter().partition(|lane| lane.direction == Direction::Out);
        // All requests first: nobody may wait for an answer to one that he has not sent.
        let mut requested = Vec::new();
        for lane in outgoing {
            requested.push((lane, self.request(lane)?));
        }
        for lane in incoming {
            let waits =
                |state: &mut crate::comm::State| !(state.is_over || state.links.incoming.contains_key(&lane));
            let mut state = self.wait_while(self.state(), waits);
            let stream = state.links.incoming.remove(&lane).ok_or(INTERNAL_ERROR)?;
            state.links.open.insert(lane, Arc::clone(&stream));
            drop(state);
            (&*stream).write_all(&[1]).map_err(|error| self.lost(lane.peer, &error))?;
        }
        for (lane, stream) in requested {
            (&*stream).read_exact(&mut [0]).map_err(|error| self.lost(lane.peer, &error))?;
            self.state().links.open.insert(lane, stream);
        }
        Ok(())
    }

    fn request(&self, lane: Lane) -> Result<Arc<TcpStream>> {
        let port = self.state().ports.get(lane.peer).copied().ok_or(INTERNAL_ERROR)?;
        let stream = self.adopt(connect(port).map_err(|error| self.lost(lane.peer, &error))?)?;
        let mut hello = self.nonce.to_ne_bytes().to_vec();
        hello.extend((self.rank as u32).to_ne_bytes());
        hello.push(u8::from(lane.is_collective));
        (&*stream).write_all(&hello).map_err(|error| self.lost(lane.peer, &error))?;
        Ok(stream)
    }

    pub(crate) fn link(&self, lane: Lane) -> Result<Arc<TcpStream>> {
        let link = self.state().links.open.get(&lane).map(Arc::clone);
        link.ok_or_else(|| failed(SYSTEM_ERROR, format_args!("no connection to rank {}", lane.peer)))
    }

    /// A peer's end of a connection is closed. By default nobody is told, and whoever waits waits for the
    /// abort.
    pub(crate) fn lost(&self, peer: usize, error: &io::Error) -> Code {
        let is_over = self.state().is_over;
        if !is_over && self.switches.async_errors {
            let code = failed(REMOTE_ERROR, format_args!("rank {} has lost rank {peer}: {error}", self.rank));
            self.fail(code);
            return code;
        }
        self.wait_for_end();
        INTERNAL_ERROR
    }
}

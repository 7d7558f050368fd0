//! One TCP connection per directed edge: items go one way, acknowledgements, heartbeats and errors
//! the other.
//!
//! # Meeting
//!
//! A rank that receives binds a listener and publishes its address in the [`Store`] under
//! `kvpipe/GROUP/RANK/address`. The rank before it looks the address up, connects, and deletes the
//! key once the two have shaken hands. After that the store is not needed any more.
//!
//! The [handshake](crate::wire::handshake) compares everything that must agree. A listener refuses
//! strangers and goes on listening until `connect_timeout`; a peer of the right group and rank that
//! is set up differently is an error at both ends, with both values. With a [`Secret`] each end
//! proves to the other that it knows it, so that a stranger can neither join nor stop the meeting.
//! The secret authenticates the handshake; it neither encrypts nor authenticates what follows.
//!
//! # Moving items
//!
//! [Frames](crate::wire::frame) one way, replies the other. The sender writes headers and small
//! payloads in batches and large ones from where they lie. The receiver reserves room in its inbox,
//! takes an aligned buffer from a bounded pool, and reads the payload straight into it.
//!
//! # Resuming
//!
//! A connection that breaks is not the end of an edge. The sender connects again to the address that
//! it knows, at once and then with growing pauses, until `reconnect_timeout`; the receiver keeps its
//! listener, and waits as long. The handshake shows that both are the same runs of the same pipe as
//! before (their *sessions*), and tells the sender what has arrived; it goes on from there.
//!
//! | what comes | the sender | the receiver |
//! |---|---|---|
//! | the same session | goes on | goes on; it takes the place of a connection that still seemed alive |
//! | another session, the connection is broken | [`PeerRestarted`](Error::PeerRestarted) | `PeerRestarted` |
//! | another session, the connection is alive | | refuses it as busy; it may try again |
//! | the peer's host refuses | [`PeerGone`](Error::PeerGone) at once | |
//! | nothing, until `reconnect_timeout` | `PeerGone` | `PeerGone` |
//!
//! Of a run that takes a former one's place only the former's peer hears `PeerRestarted`; the new run
//! goes on looking for one that does the same. So when both ends open new pipes after a failure, they
//! meet, in whatever order they do it.
//!
//! A sender gives up as well when 16 connections in a row have broken without an item getting
//! through, though one was to. When everything was acknowledged, and only the peer's word that its
//! user took it is missing, a close succeeds.
//!
//! Without a secret, whoever can reach the listener and knows group and ranks can pose as a new run of
//! the peer, and so end an edge whose connection is broken just then.
//!
//! # Staying alive
//!
//! Each end tells the other its heartbeat limit, and sends a sign of life when it has sent nothing
//! for a ninth of the other's. Any byte counts as one. An end that hears nothing for its own limit
//! gives the peer up for good: it may be frozen in the middle of anything. A receiver counts only
//! while it reads, since a sender that is kept waiting in the middle of a payload can't speak. A slow
//! consumer is therefore not a dead one: while its inbox is full, its transport still says that it is
//! alive.

pub(crate) mod connection;
pub(super) mod dial;
pub(crate) mod door;
pub(crate) mod handshake;
pub(super) mod incoming;
mod intake;
mod outgoing;

use std::net::SocketAddr;
use std::time::Duration;

pub use self::incoming::TcpIncoming;
pub use self::outgoing::TcpOutgoing;
use super::{Guarantees, Ring, Transport};
use crate::entropy::Entropy;
use crate::error::{Error, Result};
use crate::net::{Net, SocketOptions};
use crate::store::Store;
use crate::tensor::BufferPool;
pub use crate::wire::auth::Secret;
pub use crate::wire::text::GroupName;

/// How ranks meet and talk over TCP. Group, checksum and secret must be equal at both ends.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// The name that keeps edges of different groups apart, on the same store and in the handshake.
    pub group: GroupName,
    /// How long the two ranks of an edge wait for each other at the beginning.
    pub connect_timeout: Duration,
    /// The silence after which a peer counts as dead, at least [`HEARTBEAT_MIN`](Self::HEARTBEAT_MIN).
    /// The two ends of an edge may differ in it.
    pub heartbeat: Duration,
    /// How long either end tries to resume a connection that broke; zero means not at all. A sender
    /// whose peer's host refuses ends sooner. A break that only the receiver sees is resumed if the
    /// sender notices in this time, for which it may need its heartbeat limit, and then it is too late:
    /// let this be longer than that where half a connection may break.
    pub reconnect_timeout: Duration,
    /// Whether every frame carries a CRC32C of itself and its payload, besides TCP's own checksum of
    /// 16 bits. Off by default, since on loopback it costs more than a tenth of the speed of large
    /// items: see the README's numbers.
    pub checksum: bool,
    /// What both ends must know, if anything.
    pub secret: Option<Secret>,
    /// Options of every socket.
    pub socket: SocketOptions,
    /// Where session ids, nonces and back-off jitter come from.
    pub entropy: Entropy,
    /// Where payloads are received.
    pub pool: BufferPool,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            group: GroupName::default(),
            connect_timeout: Duration::from_secs(300),
            heartbeat: Duration::from_secs(5),
            reconnect_timeout: Duration::from_secs(3),
            checksum: false,
            secret: None,
            socket: SocketOptions::default(),
            entropy: Entropy::system(),
            pool: BufferPool::new(POOL_IDLE_BYTES_MAX),
        }
    }
}

impl TcpConfig {
    /// The shortest heartbeat limit. Below it a busy scheduler looks like a dead peer.
    pub const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

    pub(crate) fn check(&self) -> Result<()> {
        if self.heartbeat < Self::HEARTBEAT_MIN {
            let least = Self::HEARTBEAT_MIN;
            let what = format!("a heartbeat limit of {:?} is below {least:?}", self.heartbeat);
            return Err(Error::Misuse(what));
        }
        Ok(())
    }
}

/// Enough for the buffers that a consumer hands back while others are on their way.
const POOL_IDLE_BYTES_MAX: usize = 256 << 20;

/// Both edges of a rank in a ring: to the next one, and from the previous one.
#[derive(Debug)]
pub struct TcpTransport<N: Net, S> {
    outgoing: TcpOutgoing<N, S>,
    incoming: TcpIncoming<N>,
}

impl<N: Net, S: Store + Clone> TcpTransport<N, S> {
    /// Binds a listener on exactly `address` (port 0 chooses one) and publishes it. Nobody is
    /// connected to yet: that begins when the pipe's driver is polled, and how it ends is what the
    /// pipe's methods report.
    ///
    /// # Errors
    /// As [`TcpIncoming::bind`].
    pub async fn bind(net: N, store: S, ring: Ring, address: SocketAddr, config: TcpConfig) -> Result<Self> {
        let incoming = TcpIncoming::bind(net.clone(), &store, ring, address, config.clone()).await?;
        let outgoing = TcpOutgoing::new(net, store, ring, config);
        Ok(Self { outgoing, incoming })
    }

    /// The address that is published.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.incoming.local_addr()
    }
}

impl<N: Net, S: Store + Clone> Transport for TcpTransport<N, S> {
    type Out = TcpOutgoing<N, S>;
    type In = TcpIncoming<N>;

    fn guarantees(&self) -> Guarantees {
        Guarantees { acknowledged: true, close_visible: true, detects_death: true, resumes: true }
    }

    fn split(self) -> (Self::Out, Self::In) {
        (self.outgoing, self.incoming)
    }
}

/// Why a conversation over one connection ended.
pub(super) enum Stop {
    /// The connection is gone, the edge may go on over another.
    Broken(String),
    /// The edge has ended.
    Ended(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Ended(error)
    }
}

/// Where a rank publishes the address at which it receives.
fn address_key(group: &GroupName, rank: usize) -> String {
    format!("kvpipe/{group}/{rank}/address")
}

//! Shaking hands: four messages, after which both ends know that they belong together.
//!
//! ```text
//! connector                                   listener
//!     ├── Hello: who I am, whom I know ─────────▶│ compares
//!     │◀───── Welcome: who I am, my proof ───────┤
//!     ├── Proof ────────────────────────────────▶│ verifies
//!     │◀────────── Accepted: what I hold ────────┤
//! ```
//!
//! A listener can't choose who knocks: a stranger (another group or rank, a wrong secret) is refused
//! and forgotten. What becomes of a connector that has proved itself, its [`Candidate`] tells to
//! whoever knows the session. A connector chose whom to call: any refusal ends its meeting, but that
//! of a listener which still serves another session.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::TcpConfig;
use crate::entropy::Entropy;
use crate::error::{Error, Link, Result};
use crate::net::Stream;
use crate::transport::Ring;
use crate::transport::session::{Claim, Objection, difference, rank_on_wire, strangeness};
use crate::wire::DecodeError;
use crate::wire::auth::{PROOF_BYTES, Role, Secret, proof, verify_proof};
use crate::wire::frame::{PREFIX_BYTES, frame_in};
use crate::wire::handshake::{
    Answer, Endpoint, Hello, MAGIC, Proof, Refusal, RefusalReason, SessionId, Verdict, Welcome, greeting_in,
};

/// Why a handshake did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was not our peer, or our peer did not get through: try again, or wait for the next.
    Stranger(String),
    /// The peer's host says that nobody listens there.
    NobodyThere(String),
    /// The listener serves another session than ours.
    Taken(String),
    /// It was our peer, and the two don't fit together.
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// A connection whose ends have agreed.
pub(crate) struct Agreed<S: Stream> {
    pub(crate) reader: S::Reader,
    pub(crate) writer: S::Writer,
    pub(crate) address: SocketAddr,
    /// The silence after which the peer takes us for dead.
    pub(crate) peer_heartbeat: Duration,
    pub(crate) peer_session: SessionId,
    /// How many items the listener held when it accepted. For the connector: the listener's session knows.
    pub(crate) received: u64,
}

/// One end of an edge, as it introduces itself.
#[derive(Clone, Debug)]
pub(crate) struct Party {
    link: Link,
    /// All but the nonce, which each connection draws anew.
    endpoint: Endpoint,
    /// Whether any other rank of the group may be the sending end, of an edge of its own.
    takes_any: bool,
    secret: Option<Secret>,
    entropy: Entropy,
}

impl Party {
    /// The sending end of the edge from rank `from` to rank `to`, without a limit for items, of a run
    /// that has its session already.
    pub(crate) fn connector(
        config: &TcpConfig,
        [from, to]: [usize; 2],
        ranks: usize,
        run: SessionId,
    ) -> Self {
        Self::with_session(config, ranks, Link::new(from, to), [from, to], usize::MAX, run)
    }

    /// The receiving end of every edge to `rank`, from wherever in its group.
    pub(crate) fn host(config: &TcpConfig, rank: usize, ranks: usize, run: SessionId) -> Self {
        // Whoever knocks says which rank it is; until then it might as well be the one before.
        let from = (rank + ranks - 1) % ranks.max(1);
        let link = Link::new(rank, from);
        let party = Self::with_session(config, ranks, link, [from, rank], usize::MAX, run);
        Self { takes_any: true, ..party }
    }

    /// The sending end of the edge from `ring`'s rank to the next.
    pub(crate) fn sender(config: &TcpConfig, ring: Ring, max_item_bytes: usize) -> Result<Self> {
        let link = ring.outgoing_link();
        let edge = [link.local_rank, link.peer_rank];
        Self::new(config, ring, link, edge, max_item_bytes)
    }

    /// The receiving end of the edge to `ring`'s rank from the previous one.
    pub(crate) fn receiver(config: &TcpConfig, ring: Ring, max_item_bytes: usize) -> Result<Self> {
        let link = ring.incoming_link();
        let edge = [link.peer_rank, link.local_rank];
        Self::new(config, ring, link, edge, max_item_bytes)
    }

    fn new(
        config: &TcpConfig,
        ring: Ring,
        link: Link,
        [from, to]: [usize; 2],
        max_item_bytes: usize,
    ) -> Result<Self> {
        let session: SessionId = config.entropy.bytes()?;
        Ok(Self::with_session(config, ring.world_size(), link, [from, to], max_item_bytes, session))
    }

    fn with_session(
        config: &TcpConfig,
        world_size: usize,
        link: Link,
        [from, to]: [usize; 2],
        max_item_bytes: usize,
        session: SessionId,
    ) -> Self {
        let endpoint = Endpoint {
            group: config.group.clone(),
            from_rank: rank_on_wire(from),
            to_rank: rank_on_wire(to),
            world_size: rank_on_wire(world_size),
            session,
            nonce: Default::default(),
            max_item_bytes: max_item_bytes as u64,
            heartbeat_ms: u32::try_from(config.heartbeat.as_millis()).unwrap_or(u32::MAX),
            checksum: config.checksum,
            authenticated: config.secret.is_some(),
        };
        let (secret, entropy) = (config.secret.clone(), config.entropy.clone());
        Self { link, endpoint, takes_any: false, secret, entropy }
    }

    /// The session of this end.
    pub(crate) fn session(&self) -> SessionId {
        self.endpoint.session
    }

    /// The connector's side. `peer_session` is the one to be resumed, if we were accepted before.
    pub(crate) async fn greet<S: Stream>(
        &self,
        stream: S,
        address: SocketAddr,
        peer_session: Option<SessionId>,
    ) -> Result<Agreed<S>, Failure> {
        let link = self.link.clone().at(address);
        let incompatible =
            |mismatch| Failure::Fatal(Error::PeerIncompatible { link: link.clone(), mismatch });
        let undecodable = |error: DecodeError| match error {
            DecodeError::Magic { .. } => Failure::Stranger(error.to_string()),
            error => Failure::Fatal(error.into_error(link.clone())),
        };
        let refused = |refusal: Refusal| {
            let text = format!("it refused us: {}: {}", refusal.reason, refusal.text);
            match refusal.reason {
                RefusalReason::Busy | RefusalReason::Session => Failure::Taken(text),
                _ => incompatible(text),
            }
        };
        let (mut reader, mut writer) = stream.split();

        let hello = Hello { endpoint: self.fresh_endpoint()?, peer_session };
        let mut hello_bytes = Vec::new();
        hello.encode_into(&mut hello_bytes);
        writer.write_all(&hello_bytes).await.map_err(lost)?;

        let (answer_bytes, body) = read_message(&mut reader, greeting_in, MAGIC.len() + PREFIX_BYTES)
            .await
            .map_err(|failure| failure.or(undecodable))?;
        let welcome = match Answer::decode(&answer_bytes[body]).map_err(undecodable)? {
            Answer::Welcome(welcome) => welcome,
            Answer::Refusal(refusal) => return Err(refused(refusal)),
        };
        if let Some((reason, text)) = strangeness(&hello.endpoint, &welcome.endpoint) {
            return Err(incompatible(format!("{reason}: {text}")));
        }
        let transcript: &[&[u8]] = &[&hello_bytes, &welcome.unproven()];
        if !self.verifies(Role::Listener, transcript, &welcome.proof) {
            // A proof of nothing, so that the listener can tell its side why.
            let mut bytes = Vec::new();
            Proof { proof: [0; PROOF_BYTES] }.encode_into(&mut bytes);
            writer.write_all(&bytes).await.map_err(lost)?;
            return Err(incompatible("secret: the listener does not know ours".into()));
        }

        let mut bytes = Vec::new();
        Proof { proof: self.proof(Role::Connector, &[&hello_bytes, &answer_bytes]) }.encode_into(&mut bytes);
        writer.write_all(&bytes).await.map_err(lost)?;
        let (bytes, body) = read_message(&mut reader, frame_in, PREFIX_BYTES)
            .await
            .map_err(|failure| failure.or(undecodable))?;
        let received = match Verdict::decode(&bytes[body]).map_err(undecodable)? {
            Verdict::Accepted { received } => received,
            Verdict::Refusal(refusal) => return Err(refused(refusal)),
        };
        if let Some((reason, text)) = difference(&hello.endpoint, &welcome.endpoint) {
            return Err(incompatible(format!("{reason}: {text}")));
        }
        let Endpoint { session: peer_session, .. } = welcome.endpoint;
        let peer_heartbeat = welcome.endpoint.heartbeat();
        Ok(Agreed { reader, writer, address, peer_heartbeat, peer_session, received })
    }

    /// The listener's side, up to its verdict, which the [`Candidate`] waits for.
    pub(crate) async fn admit<S: Stream>(
        &self,
        stream: S,
        address: SocketAddr,
    ) -> Result<Candidate<S>, Failure> {
        let stranger = |what: String| Failure::Stranger(format!("{address}: {what}"));
        let (mut reader, mut writer) = stream.split();

        let undecodable = |error: DecodeError| stranger(error.to_string());
        let (hello_bytes, body) = read_message(&mut reader, greeting_in, MAGIC.len() + PREFIX_BYTES)
            .await
            .map_err(|failure| failure.or(undecodable))?;
        let hello = match Hello::decode(&hello_bytes[body]) {
            Ok(hello) => hello,
            Err(error) => {
                if matches!(error, DecodeError::Version { .. }) {
                    refuse_hello(&mut writer, RefusalReason::Version, &error.to_string()).await;
                }
                return Err(undecodable(error));
            }
        };
        let mut endpoint = self.fresh_endpoint()?;
        let from_rank = hello.endpoint.from_rank;
        if self.takes_any && from_rank < endpoint.world_size && from_rank != endpoint.to_rank {
            endpoint.from_rank = from_rank;
        }
        if let Some((reason, text)) = strangeness(&hello.endpoint, &endpoint) {
            refuse_hello(&mut writer, reason, &text).await;
            return Err(stranger(format!("{reason}: {text}")));
        }
        let difference = difference(&hello.endpoint, &endpoint);

        let mut welcome = Welcome { endpoint, proof: [0; PROOF_BYTES] };
        welcome.proof = self.proof(Role::Listener, &[&hello_bytes, &welcome.unproven()]);
        let mut welcome_bytes = Vec::new();
        Answer::Welcome(welcome).encode_into(&mut welcome_bytes);
        writer.write_all(&welcome_bytes).await.map_err(lost)?;

        let (bytes, body) = read_message(&mut reader, frame_in, PREFIX_BYTES)
            .await
            .map_err(|failure| failure.or(undecodable))?;
        let claimed = Proof::decode(&bytes[body]).map_err(undecodable)?;
        if !self.verifies(Role::Connector, &[&hello_bytes, &welcome_bytes], &claimed.proof) {
            let text = "the connector does not know ours";
            send_verdict(&mut writer, &refusal(RefusalReason::Secret, text, Verdict::Refusal)).await?;
            return Err(stranger(format!("secret: {text}")));
        }
        let claim = Claim { session: hello.endpoint.session, peer_session: hello.peer_session };
        let peer_heartbeat = hello.endpoint.heartbeat();
        let peer_session = claim.session;
        let agreed = Agreed { reader, writer, address, peer_heartbeat, peer_session, received: 0 };
        Ok(Candidate { agreed, claim, difference, rank: from_rank as usize })
    }

    fn fresh_endpoint(&self) -> Result<Endpoint> {
        Ok(Endpoint { nonce: self.entropy.bytes()?, ..self.endpoint.clone() })
    }

    fn proof(&self, role: Role, transcript: &[&[u8]]) -> [u8; PROOF_BYTES] {
        self.secret.as_ref().map_or([0; PROOF_BYTES], |secret| proof(secret, role, transcript))
    }

    fn verifies(&self, role: Role, transcript: &[&[u8]], claimed: &[u8; PROOF_BYTES]) -> bool {
        match &self.secret {
            Some(secret) => verify_proof(secret, role, transcript, claimed),
            None => *claimed == [0; PROOF_BYTES],
        }
    }
}

/// A connector that knows the secret, if there is one, and waits for the verdict.
pub(crate) struct Candidate<S: Stream> {
    agreed: Agreed<S>,
    pub(crate) claim: Claim,
    /// Which rank it is.
    pub(crate) rank: usize,
    /// In what it is set up differently.
    pub(crate) difference: Objection,
}

impl<S: Stream> Candidate<S> {
    /// Where it comes from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.agreed.address
    }

    /// Tells it how many items we hold. From then on frames may come.
    pub(crate) async fn accept(mut self, received: u64) -> Result<Agreed<S>, Failure> {
        send_verdict(&mut self.agreed.writer, &Verdict::Accepted { received }).await?;
        Ok(self.agreed)
    }

    /// Tells it why not.
    pub(crate) async fn refuse(mut self, reason: RefusalReason, text: &str) -> Result<(), Failure> {
        send_verdict(&mut self.agreed.writer, &refusal(reason, text, Verdict::Refusal)).await
    }
}

/// A message that did not arrive as one.
enum Unread {
    Lost(String),
    Malformed(DecodeError),
}

impl Unread {
    fn or(self, undecodable: impl FnOnce(DecodeError) -> Failure) -> Failure {
        match self {
            Self::Lost(reason) => Failure::Stranger(reason),
            Self::Malformed(error) => undecodable(error),
        }
    }
}

/// Where a message's body is in what has arrived of it.
type BodyIn = fn(&[u8]) -> Result<Option<Range<usize>>, DecodeError>;

/// Reads one message and not a byte more, and says where in it the body is.
async fn read_message(
    reader: &mut (impl AsyncRead + Unpin),
    body_in: BodyIn,
    header_bytes: usize,
) -> Result<(Vec<u8>, Range<usize>), Unread> {
    let mut message = Vec::new();
    loop {
        if let Some(body) = body_in(&message).map_err(Unread::Malformed)? {
            return Ok((message, body));
        }
        // The header says how long the body is; a stranger is recognised by any part of its first
        // bytes.
        let known = message.last_chunk::<PREFIX_BYTES>().filter(|_| message.len() == header_bytes);
        let missing = match known {
            Some(prefix) => u32::from_le_bytes(*prefix) as usize,
            None if message.len() < header_bytes => header_bytes - message.len(),
            None => 1,
        };
        let mut part = (&mut *reader).take(missing as u64);
        match part.read_buf(&mut message).await {
            Ok(0) => return Err(Unread::Lost("the connection was closed during the handshake".into())),
            Ok(_) => {}
            Err(error) => return Err(Unread::Lost(format!("{error} during the handshake"))),
        }
    }
}

fn refusal<M>(reason: RefusalReason, text: &str, message: impl FnOnce(Refusal) -> M) -> M {
    message(Refusal { reason, text: text.into() })
}

/// Tells a connector why not. If that fails it finds out by the end of the connection.
async fn refuse_hello(writer: &mut (impl tokio::io::AsyncWrite + Unpin), reason: RefusalReason, text: &str) {
    let mut bytes = Vec::new();
    refusal(reason, text, Answer::Refusal).encode_into(&mut bytes);
    if let Err(error) = writer.write_all(&bytes).await {
        tracing::debug!(%error, "a refusal did not reach its connector");
    }
}

async fn send_verdict(
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
    verdict: &Verdict,
) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    verdict.encode_into(&mut bytes);
    writer.write_all(&bytes).await.map_err(lost)
}

fn lost(error: std::io::Error) -> Failure {
    Failure::Stranger(format!("{error} during the handshake"))
}

//! The four messages that open a tcp connection.
//!
//! ```text
//! connector (sends items)              listener (receives items)
//!     magic, Hello   ───────────────▶
//!                    ◀───────────────  magic, Answer    Welcome, or Refusal and the end
//!     Proof          ───────────────▶
//!                    ◀───────────────  Verdict          Accepted, or Refusal and the end
//! ```
//!
//! What the listener holds comes with its last word and not sooner: until then another connection of
//! the same session may still bring it items.
//!
//! Each message is framed as in [`frame`](super::frame). The first of each direction stands behind
//! an eight-byte [`MAGIC`], so that a stranger is recognised before any length is trusted; its line
//! end shows a link that translates text.
//!
//! # What never changes
//!
//! So that two versions can tell each other what is wrong, every version keeps: the magic; the
//! framing and its limit; the version as the first field of [`Hello`] and of [`Welcome`]; and all of
//! a [`Refusal`], with [`RefusalReason::Version`].

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use super::auth::PROOF_BYTES;
use super::codec::{self, Message, Reader, Writer};
use super::error::DecodeError;
use super::frame::{encode_framed, frame_in};
use super::text::{GroupName, Text};

/// The first bytes of either direction.
pub const MAGIC: [u8; 8] = *b"KVPIPE\r\n";

/// The version of handshake and frames that this build speaks.
pub const VERSION: u16 = 1;

/// Which run of a pipe end this is: random, and new with every pipe.
pub type SessionId = [u8; 16];

/// Random bytes that make each handshake's proofs unlike any other's.
pub type Nonce = [u8; 32];

/// Where the body of a first message (magic, length, body) is in `buffer`, or None if more bytes
/// are needed to tell. For the messages without magic see [`frame_in`].
///
/// # Errors
/// [`DecodeError::Magic`] with the first byte that is not the magic's; otherwise as [`frame_in`].
pub fn greeting_in(buffer: &[u8]) -> Result<Option<Range<usize>>, DecodeError> {
    let (begin, rest) = buffer.split_at(buffer.len().min(MAGIC.len()));
    if !MAGIC.starts_with(begin) {
        return Err(DecodeError::Magic { found: begin.to_vec() });
    }
    let body = frame_in(rest)?;
    Ok(body.map(|body| body.start + MAGIC.len()..body.end + MAGIC.len()))
}

/// What each end says about itself and about the edge as it sees it. The ends fit together if all
/// fields but `session`, `nonce` and `heartbeat_ms` are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The group whose ranks these are.
    pub group: GroupName,
    /// The rank that sends items: the connector's.
    pub from_rank: u32,
    /// The rank that receives them: the listener's.
    pub to_rank: u32,
    /// How many ranks the group has.
    pub world_size: u32,
    /// The session of whoever sends this.
    pub session: SessionId,
    /// A fresh one for each connection.
    pub nonce: Nonce,
    /// The largest payload of an item, in bytes.
    pub max_item_bytes: u64,
    /// The silence after which whoever sends this takes the other for dead, in milliseconds. The
    /// other speaks often enough for that; the two limits need not be equal.
    pub heartbeat_ms: u32,
    /// Whether every frame carries a CRC32C.
    pub checksum: bool,
    /// Whether a shared secret is in use.
    pub authenticated: bool,
}

impl Endpoint {
    /// [`heartbeat_ms`](Self::heartbeat_ms) as a duration.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.into())
    }
}

/// Connector to listener: who I am, and whom I know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The connector's side.
    pub endpoint: Endpoint,
    /// The listener's session to be resumed. None as long as no listener has accepted this session.
    pub peer_session: Option<SessionId>,
}

impl Hello {
    /// Appends magic, length prefix and body.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        encode_framed(self, out);
    }

    /// The message whose body, without magic and length prefix, is `body`.
    ///
    /// # Errors
    /// [`DecodeError::Version`] if it speaks another version, however the rest of it looks;
    /// otherwise whatever makes it another message than [`encode_into`](Self::encode_into) writes.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(body)
    }
}

/// Listener to connector: who I am, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The ends fit together. Whether the connector knows the secret is still open.
    Welcome(Welcome),
    /// They do not; the connection ends here.
    Refusal(Refusal),
}

impl Answer {
    /// Appends magic, length prefix and body.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        encode_framed(self, out);
    }

    /// The message whose body, without magic and length prefix, is `body`.
    ///
    /// # Errors
    /// [`DecodeError::Version`] for a welcome in another version; otherwise whatever makes it
    /// another message than [`encode_into`](Self::encode_into) writes.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(body)
    }
}

/// The listener's half of the agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The listener's side.
    pub endpoint: Endpoint,
    /// That the listener knows the secret, see [`proof`](super::auth::proof). All zero without one.
    pub proof: [u8; PROOF_BYTES],
}

impl Welcome {
    /// This message as it goes over the wire, but with an all-zero proof: what the listener's own
    /// proof covers, besides the connector's [`Hello`]. Both ends compute it, the connector from
    /// what it decoded; they get the same bytes because there is only one encoding.
    #[must_use]
    pub fn unproven(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        Answer::Welcome(Self { proof: [0; PROOF_BYTES], ..self.clone() }).encode_into(&mut bytes);
        bytes
    }
}

/// Connector to listener: that the connector knows the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// See [`proof`](super::auth::proof). All zero without a secret.
    pub proof: [u8; PROOF_BYTES],
}

impl Proof {
    /// Appends length prefix and body.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode_framed(self, out);
    }

    /// The message whose body, without length prefix, is `body`.
    ///
    /// # Errors
    /// Whatever makes it another message than [`encode_into`](Self::encode_into) writes.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(body)
    }
}

/// Listener to connector: the last word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Frames may follow.
    Accepted {
        /// Every item below this sequence is in the listener's inbox, and no other: no connection
        /// before this one brings any more. The sender goes on from here.
        received: u64,
    },
    /// The connection ends here.
    Refusal(Refusal),
}

impl Verdict {
    /// Appends length prefix and body.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode_framed(self, out);
    }

    /// The message whose body, without length prefix, is `body`.
    ///
    /// # Errors
    /// Whatever makes it another message than [`encode_into`](Self::encode_into) writes.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(body)
    }
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: RefusalReason,
    /// For people: both values that differ.
    pub text: Text,
}

/// What a refusal is about. The codes on the wire are the discriminants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalReason {
    /// The ends speak different versions.
    Version = 1,
    /// They belong to different groups.
    Group = 2,
    /// The listener is not the rank that the connector wants, or does not expect the connector's.
    Rank = 3,
    /// They know different numbers of ranks.
    WorldSize = 4,
    /// Their limits for the size of an item differ.
    ItemLimit = 5,
    /// One wants checksums, the other does not.
    Checksum = 6,
    /// Only one end has a secret, or the two differ.
    Secret = 7,
    /// The listener has a connection of another session, which is alive.
    Busy = 8,
    /// The listener has another session than the one to be resumed, or serves another than the
    /// connector's.
    Session = 9,
    /// Something else; the text tells.
    Other = 10,
}

impl RefusalReason {
    /// Every reason, in the order of their codes.
    pub const ALL: [Self; 10] = [
        Self::Version,
        Self::Group,
        Self::Rank,
        Self::WorldSize,
        Self::ItemLimit,
        Self::Checksum,
        Self::Secret,
        Self::Busy,
        Self::Session,
        Self::Other,
    ];

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == code)
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "version",
            Self::Group => "group",
            Self::Rank => "rank",
            Self::WorldSize => "world size",
            Self::ItemLimit => "item limit",
            Self::Checksum => "checksum",
            Self::Secret => "secret",
            Self::Busy => "busy",
            Self::Session => "session",
            Self::Other => "other",
        })
    }
}

/// Tags on the wire. A refusal has the same one in both messages that can be one.
mod tag {
    pub(super) const REFUSAL: u8 = 0;
    pub(super) const WELCOME: u8 = 1;
    pub(super) const ACCEPTED: u8 = 2;
}

/// Reads a version, the first field of a message; nothing behind it is looked at if it differs.
fn read_version(input: &mut Reader<'_>) -> Result<(), DecodeError> {
    match input.take()? {
        VERSION => Ok(()),
        found => Err(DecodeError::Version { what: "protocol", found, supported: VERSION }),
    }
}

impl Message for Endpoint {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(self.group.as_str());
        out.put(&self.from_rank);
        out.put(&self.to_rank);
        out.put(&self.world_size);
        out.put(&self.session);
        out.put(&self.nonce);
        out.put(&self.max_item_bytes);
        out.put(&self.heartbeat_ms);
        out.put(&self.checksum);
        out.put(&self.authenticated);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            group: GroupName::read(input)?,
            from_rank: input.take()?,
            to_rank: input.take()?,
            world_size: input.take()?,
            session: input.take()?,
            nonce: input.take()?,
            max_item_bytes: input.take()?,
            heartbeat_ms: input.take()?,
            checksum: input.take()?,
            authenticated: input.take()?,
        })
    }
}

impl Message for Hello {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(&VERSION);
        self.endpoint.write(out);
        out.put(&self.peer_session);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        read_version(input)?;
        Ok(Self { endpoint: Endpoint::read(input)?, peer_session: input.take()? })
    }
}

impl Message for Answer {
    fn write(&self, out: &mut Writer<'_>) {
        match self {
            Self::Welcome(welcome) => {
                out.put(&tag::WELCOME);
                welcome.write(out);
            }
            Self::Refusal(refusal) => {
                out.put(&tag::REFUSAL);
                refusal.write(out);
            }
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match input.take()? {
            tag::WELCOME => Self::Welcome(Welcome::read(input)?),
            tag::REFUSAL => Self::Refusal(Refusal::read(input)?),
            found => return Err(DecodeError::UnknownTag { what: "answer tag", found: u8::into(found) }),
        })
    }
}

impl Message for Welcome {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(&VERSION);
        self.endpoint.write(out);
        out.put(&self.proof);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        read_version(input)?;
        Ok(Self { endpoint: Endpoint::read(input)?, proof: input.take()? })
    }
}

impl Message for Proof {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(&self.proof);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { proof: input.take()? })
    }
}

impl Message for Verdict {
    fn write(&self, out: &mut Writer<'_>) {
        match self {
            Self::Accepted { received } => {
                out.put(&tag::ACCEPTED);
                out.put(received);
            }
            Self::Refusal(refusal) => {
                out.put(&tag::REFUSAL);
                refusal.write(out);
            }
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match input.take()? {
            tag::ACCEPTED => Self::Accepted { received: input.take()? },
            tag::REFUSAL => Self::Refusal(Refusal::read(input)?),
            found => return Err(DecodeError::UnknownTag { what: "verdict tag", found: u8::into(found) }),
        })
    }
}

impl Message for Refusal {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(&(self.reason as u8));
        out.put(self.text.as_str());
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let code: u8 = input.take()?;
        let reason = RefusalReason::from_code(code)
            .ok_or(DecodeError::UnknownTag { what: "refusal reason", found: code.into() })?;
        Ok(Self { reason, text: Text::read("text of a refusal", input)? })
    }
}

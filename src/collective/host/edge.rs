//! The two ends of a directed edge: frames one way, signs of life and aborts the other.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::error::{Error, Link};
use crate::net::Stream;
use crate::transport::session::{Silence, Violation};
use crate::transport::tcp::connection::{FrameReader, FrameWriter, WireFrame};
use crate::transport::tcp::handshake::Agreed;
use crate::transport::timing::silent_for;
use crate::wire::DecodeError;
use crate::wire::collective::{Fault, GroupFrame, GroupReply, Verdict};

impl WireFrame for GroupFrame {
    fn encode_into(&self, out: &mut Vec<u8>) {
        self.encode_into(out);
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(body)
    }

    fn payload_bytes(&self) -> usize {
        match self {
            // Refused, where it is compared with what is due, if it does not fit this machine.
            Self::Part { bytes } => usize::try_from(*bytes).unwrap_or(usize::MAX),
            _ => 0,
        }
    }
}

impl WireFrame for GroupReply {
    fn encode_into(&self, out: &mut Vec<u8>) {
        self.encode_into(out);
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(body)
    }
}

/// The sending end.
pub(super) struct OutEdge<S: Stream> {
    pub(super) writer: FrameWriter<S::Writer>,
    replies: FrameReader<S::Reader>,
    link: Link,
    silence: Silence,
    /// Whether a message has begun and not ended: nothing else can be said before its end.
    pub(super) in_message: bool,
    /// Whether the peer has said that it leaves.
    pub(super) left: bool,
}

/// The receiving end.
pub(super) struct InEdge<S: Stream> {
    reader: FrameReader<S::Reader>,
    pub(super) replies: FrameWriter<S::Writer>,
    link: Link,
    silence: Silence,
    /// What has arrived of the operations and is not due yet.
    next: Option<GroupFrame>,
    /// Whether we are in the middle of a message.
    pub(super) in_message: bool,
    /// Whether the peer has said that it leaves.
    pub(super) left: bool,
}

impl<S: Stream> OutEdge<S> {
    pub(super) fn new(agreed: Agreed<S>, link: Link, checksum: bool) -> Self {
        Self {
            writer: FrameWriter::new(agreed.writer, checksum),
            replies: FrameReader::new(agreed.reader, checksum),
            link: link.at(agreed.address),
            silence: heard_now(),
            in_message: false,
            left: false,
        }
    }

    /// Reads what the peer says, until there is nothing more.
    pub(super) fn poll_replies(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while !self.left {
            match self.replies.take().map_err(|violation| misbehaved(&self.link, violation))? {
                Some(GroupReply::Alive) => {}
                Some(GroupReply::Goodbye) => self.left = true,
                Some(GroupReply::Abort(verdict)) => return Err(told(&self.link, verdict)),
                None => match pin!(self.replies.fill()).poll(cx) {
                    Poll::Pending => break,
                    Poll::Ready(read) => heard(read, &self.link, &mut self.silence)?,
                },
            }
        }
        Ok(())
    }

    /// A ninth of our heartbeat limit has passed.
    pub(super) fn tick(&mut self, heartbeat: Duration) -> Result<(), Error> {
        match !self.left && self.silence.tick() {
            true => Err(gone(&self.link, silent_for(heartbeat))),
            false => Ok(()),
        }
    }

    /// What happened to a write.
    pub(super) fn broken(&self, error: &io::Error) -> Error {
        gone(&self.link, format!("{error} while sending"))
    }

    /// Says that we are alive, if that can be said now.
    pub(super) fn speak(&mut self, cx: &mut Context<'_>) {
        if !self.in_message && !self.left {
            speak(&mut self.writer, &GroupFrame::Alive, &self.link, cx);
        }
    }

    /// Reads and forgets until the peer has closed its end.
    pub(super) async fn discard(&mut self) -> io::Result<()> {
        self.replies.discard().await
    }
}

impl<S: Stream> InEdge<S> {
    pub(super) fn new(agreed: Agreed<S>, link: Link, checksum: bool) -> Self {
        Self {
            reader: FrameReader::new(agreed.reader, checksum),
            replies: FrameWriter::new(agreed.writer, checksum),
            link: link.at(agreed.address),
            silence: heard_now(),
            next: None,
            in_message: false,
            left: false,
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Waits for the next frame of an operation, and leaves it where it is.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<&GroupFrame, Error>> {
        while self.next.is_none() {
            if self.left {
                return Poll::Ready(Err(gone(&self.link, "it has left the group".into())));
            }
            match self.reader.take().map_err(|violation| misbehaved(&self.link, violation))? {
                Some(GroupFrame::Alive) => {}
                Some(GroupFrame::Goodbye) => self.left = true,
                Some(GroupFrame::Abort(verdict)) => return Poll::Ready(Err(told(&self.link, verdict))),
                Some(frame) => self.next = Some(frame),
                None => heard(ready!(pin!(self.reader.fill()).poll(cx)), &self.link, &mut self.silence)?,
            }
        }
        match &self.next {
            Some(frame) => Poll::Ready(Ok(frame)),
            None => Poll::Pending,
        }
    }

    /// What has arrived and is not due yet.
    pub(super) fn next(&self) -> Option<&GroupFrame> {
        self.next.as_ref()
    }

    /// Takes the frame that [`poll_next`](Self::poll_next) showed.
    pub(super) fn take_next(&mut self) {
        self.next = None;
    }

    /// Looks for what does not belong to an operation, such as an abort.
    pub(super) fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.in_message || self.left {
            return Ok(());
        }
        let failure = match self.poll_next(cx) {
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(_)) | Poll::Pending => None,
        };
        // That it leaves is only a failure for who waits for it.
        failure.filter(|_| !self.left).map_or(Ok(()), Err)
    }

    /// Reads a part of a message.
    pub(super) fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut [u8],
    ) -> Poll<Result<usize, Error>> {
        let read = ready!(pin!(self.reader.read(Some(target))).poll(cx));
        let bytes = *read.as_ref().unwrap_or(&0);
        heard(read, &self.link, &mut self.silence)?;
        Poll::Ready(Ok(bytes))
    }

    /// Waits for what comes behind a message.
    pub(super) fn poll_message_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while !self.reader.payload_ends().map_err(|violation| misbehaved(&self.link, violation))? {
            heard(ready!(pin!(self.reader.fill()).poll(cx)), &self.link, &mut self.silence)?;
        }
        Poll::Ready(Ok(()))
    }

    /// A ninth of our heartbeat limit has passed.
    pub(super) fn tick(&mut self, heartbeat: Duration) -> Result<(), Error> {
        if self.next.is_some() {
            // We don't read, so it may have been kept from speaking.
            self.silence.excuse();
            return Ok(());
        }
        match !self.left && self.silence.tick() {
            true => Err(gone(&self.link, silent_for(heartbeat))),
            false => Ok(()),
        }
    }

    /// Says that we are alive.
    pub(super) fn speak(&mut self, cx: &mut Context<'_>) {
        if !self.left {
            speak(&mut self.replies, &GroupReply::Alive, &self.link, cx);
        }
    }

    /// Reads and forgets until the peer has closed its end.
    pub(super) async fn discard(&mut self) -> io::Result<()> {
        self.reader.discard().await
    }
}

/// Sends a frame if nothing is on its way, and as much of it as goes now. If the peer has closed its end,
/// what it said last is still to be read, behind a message perhaps whose turn has not come: it may be why.
fn speak<W: tokio::io::AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    frame: &impl WireFrame,
    link: &Link,
    cx: &mut Context<'_>,
) {
    if !writer.is_staged() {
        writer.stage(frame, &[]);
    }
    if let Poll::Ready(Err(error)) = writer.poll_flush(cx) {
        tracing::debug!(%link, %error, "a rank has closed its end");
    }
}

/// The handshake was a sign of life.
fn heard_now() -> Silence {
    let mut silence = Silence::default();
    silence.hear();
    silence
}

fn heard(read: io::Result<usize>, link: &Link, silence: &mut Silence) -> Result<(), Error> {
    match read {
        Ok(0) => Err(gone(link, "it closed the connection".into())),
        Ok(_) => {
            silence.hear();
            Ok(())
        }
        Err(error) => Err(gone(link, error.to_string())),
    }
}

fn gone(link: &Link, reason: String) -> Error {
    Error::PeerGone { link: link.clone(), reason }
}

fn misbehaved(link: &Link, Violation(violation): Violation) -> Error {
    Error::PeerMisbehaved { link: link.clone(), violation }
}

/// What the peer at the other end of `link` has found out.
fn told(link: &Link, verdict: Verdict) -> Error {
    let (rank, reason) = (verdict.rank as usize, verdict.reason.to_string());
    let about = Link::new(link.local_rank, rank);
    match verdict.fault {
        // To the rank that the finder named, it is the finder who differs.
        Fault::Mismatch if rank == link.local_rank => {
            Error::PeerIncompatible { link: link.clone(), mismatch: reason }
        }
        Fault::Mismatch => Error::PeerIncompatible { link: about, mismatch: reason },
        Fault::Gone if rank != link.local_rank => {
            let reason = match rank == link.peer_rank {
                true => reason,
                false => format!("rank {} says: {reason}", link.peer_rank),
            };
            Error::PeerGone { link: about, reason }
        }
        Fault::Gone | Fault::Other => Error::PeerAborted { link: link.clone(), reason },
    }
}

/// What the other ranks are told of a failure.
pub(super) fn verdict(error: &Error, own_rank: usize) -> Verdict {
    let (fault, rank, reason) = match error {
        Error::PeerIncompatible { link, mismatch } => (Fault::Mismatch, link.peer_rank, mismatch.clone()),
        Error::PeerGone { link, reason } => (Fault::Gone, link.peer_rank, reason.clone()),
        Error::PeerAborted { reason, .. } => (Fault::Other, own_rank, reason.clone()),
        error => (Fault::Other, own_rank, error.to_string()),
    };
    Verdict { fault, rank: u32::try_from(rank).unwrap_or(u32::MAX), reason: reason.into() }
}

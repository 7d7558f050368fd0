//! Ranks in one process: items cross as cheap clones, nothing is copied.
//!
//! It is a transport in its own right, the fastest one, and the stage on which pipes are tested:
//! a [`Script`] makes the wire fail at chosen items, and loom sees every lock.
//!
//! Nothing is encoded, so nothing can be decoded wrongly; a peer is *gone* when its end is dropped.
//! There is no clock: a peer whose driver nobody polls is not found out.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> kvpipe::Result<()> {
//! use kvpipe::transport::memory::{self, Fault, Script};
//! use kvpipe::{Error, Pipe, PipeConfig};
//!
//! // The second item gets through, its acknowledgement does not.
//! let (out, inc) = memory::edge(Script::new().at(1, Fault::LoseAcknowledgement));
//! let (sender, driver) = Pipe::send_only(out, PipeConfig::default());
//! driver.spawn()?;
//! let (receiver, driver) = Pipe::receive_only(inc, PipeConfig::default());
//! driver.spawn()?;
//!
//! sender.send(None).await?;
//! sender.send(None).await?;
//! assert!(matches!(sender.close().await, Err(Error::PeerGone { .. })));
//! let undelivered = sender.undelivered();
//! assert_eq!((undelivered.len(), undelivered[0].sequence, undelivered[0].in_doubt), (1, 1, true));
//! # Ok(()) }
//! ```

mod script;
mod wire;

pub use self::script::{Fault, Gate, Script};
use self::wire::{Answer, Arrival, ReceiverEnd, SenderEnd};
use super::{Guarantees, Inbox, Incoming, Outbox, Outgoing, Transport, item_bytes};
use crate::error::{Error, Link, Result};
use crate::tensor::Item;

/// Both directions of one end of a [`pair`].
#[derive(Debug)]
pub struct MemoryTransport {
    outgoing: MemoryOutgoing,
    incoming: MemoryIncoming,
}

/// The sending end of an [`edge`].
#[derive(Debug)]
pub struct MemoryOutgoing {
    end: SenderEnd,
    link: Link,
}

/// The receiving end of an [`edge`].
#[derive(Debug)]
pub struct MemoryIncoming {
    end: ReceiverEnd,
    link: Link,
    script: Script,
}

/// Two connected ends, as ranks 0 and 1 of a ring of two.
#[must_use]
pub fn pair() -> (MemoryTransport, MemoryTransport) {
    pair_with(Script::new(), Script::new())
}

/// Two connected ends with faults: `forth` strikes what rank 0 sends, `back` what rank 1 sends.
#[must_use]
pub fn pair_with(forth: Script, back: Script) -> (MemoryTransport, MemoryTransport) {
    let (left_out, right_in) = edge_between(0, 1, forth);
    let (right_out, left_in) = edge_between(1, 0, back);
    (
        MemoryTransport { outgoing: left_out, incoming: left_in },
        MemoryTransport { outgoing: right_out, incoming: right_in },
    )
}

/// One direction only, from rank 0 to rank 1, with the faults of `script`.
#[must_use]
pub fn edge(script: Script) -> (MemoryOutgoing, MemoryIncoming) {
    edge_between(0, 1, script)
}

/// One end for each of `world_size` ranks of a ring: rank `r` sends to `(r + 1) % world_size`. A
/// ring of one sends to itself.
#[must_use]
pub fn ring(world_size: usize) -> Vec<MemoryTransport> {
    let (outgoing, mut incoming): (Vec<_>, Vec<_>) =
        (0..world_size).map(|rank| edge_between(rank, (rank + 1) % world_size, Script::new())).unzip();
    if world_size > 0 {
        // The edge that begins at the last rank ends at rank 0.
        incoming.rotate_right(1);
    }
    let ends = outgoing.into_iter().zip(incoming);
    ends.map(|(outgoing, incoming)| MemoryTransport { outgoing, incoming }).collect()
}

fn edge_between(from: usize, to: usize, script: Script) -> (MemoryOutgoing, MemoryIncoming) {
    let (sender, receiver) = wire::new();
    (
        MemoryOutgoing { end: sender, link: Link::new(from, to) },
        MemoryIncoming { end: receiver, link: Link::new(to, from), script },
    )
}

impl Transport for MemoryTransport {
    type Out = MemoryOutgoing;
    type In = MemoryIncoming;

    fn guarantees(&self) -> Guarantees {
        Guarantees { acknowledged: true, close_visible: true, detects_death: true, resumes: false }
    }

    fn split(self) -> (MemoryOutgoing, MemoryIncoming) {
        (self.outgoing, self.incoming)
    }
}

impl Outgoing for MemoryOutgoing {
    fn link(&self) -> Link {
        self.link.clone()
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        let mut ended = false;
        loop {
            // Nothing here ever waits for the system: leave the thread to others now and then.
            tokio::task::consume_budget().await;
            let next = async {
                match ended {
                    false => items.next().await,
                    true => Err(items.failed().await),
                }
            };
            tokio::select! {
                biased;
                response = self.end.response(items.settled()) => {
                    items.settle(response.acknowledged);
                    if let Some(answer) = response.answer {
                        return self.ending(answer, ended, items);
                    }
                }
                next = next => match next {
                    Ok(Some((sequence, item))) => self.end.send(sequence, item),
                    Ok(None) => {
                        ended = true;
                        self.end.close(items.accepted());
                    }
                    Err(error) => {
                        self.end.abort(error.to_string());
                        return Err(error);
                    }
                }
            }
        }
    }
}

impl MemoryOutgoing {
    /// What the receiver's last word means for the sender.
    fn ending(&self, answer: Answer, ended: bool, items: &Outbox) -> Result<()> {
        let complete = ended && items.settled() == items.accepted();
        let link = self.link.clone();
        match answer {
            Answer::Finished => Ok(()),
            Answer::Closed { taken } => Err(Error::ReceiverClosed { link, taken }),
            // The answer is lost, the items are not.
            Answer::Gone(_) if complete => Ok(()),
            Answer::Aborted(reason) => Err(Error::PeerAborted { link, reason }),
            Answer::Gone(reason) => Err(Error::PeerGone { link, reason }),
        }
    }
}

impl Incoming for MemoryIncoming {
    fn link(&self) -> Link {
        self.link.clone()
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        let result = self.receive(items).await;
        match &result {
            Ok(()) => {}
            Err(Error::Closed) => {
                self.end.answer(Answer::Closed { taken: items.taken() });
                return Ok(());
            }
            Err(error) => self.end.answer(Answer::Aborted(error.to_string())),
        }
        result
    }
}

impl MemoryIncoming {
    /// Until the end of the stream; [`Error::Closed`] if our user leaves first.
    async fn receive(&self, items: &Inbox) -> Result<()> {
        loop {
            tokio::task::consume_budget().await;
            let arrival = tokio::select! {
                biased;
                arrival = self.end.arrival() => arrival,
                () = items.closed() => return Err(Error::Closed),
            };
            let link = self.link.clone();
            match arrival {
                Arrival::Item(sequence, item) => self.deliver(sequence, item, items).await?,
                Arrival::Close(_) if !items.drained().await => return Err(Error::Closed),
                // The answer would acknowledge everything.
                Arrival::Close(sent) if self.script.withholds_acknowledgement(sent) => {}
                Arrival::Close(_) => {
                    self.end.answer(Answer::Finished);
                    return Ok(());
                }
                Arrival::Aborted(reason) => return Err(Error::PeerAborted { link, reason }),
                Arrival::Gone(reason) => return Err(Error::PeerGone { link, reason }),
            }
        }
    }

    /// Puts an item into the inbox and acknowledges it, as far as the script lets it.
    async fn deliver(&self, sequence: u64, item: Item, items: &Inbox) -> Result<()> {
        let fault = self.script.fault(sequence);
        match fault {
            Some(Fault::Fail) => return Err(self.cut(format!("cut before item {sequence}"))),
            Some(Fault::Stall(gate)) => tokio::select! {
                biased;
                () = gate.opened() => {}
                () = items.closed() => return Err(Error::Closed),
            },
            _ => {}
        }
        let permit = items.reserve(item_bytes(&item)).await.map_err(|error| match error {
            Error::TooLarge { .. } => Error::PeerMisbehaved {
                link: self.link.clone(),
                violation: format!("item {sequence}: {error}"),
            },
            error => error,
        })?;
        if matches!(fault, Some(Fault::CutDelivery)) {
            return Err(self.cut(format!("cut during item {sequence}")));
        }
        permit.fill(item)?;
        if matches!(fault, Some(Fault::LoseAcknowledgement)) {
            return Err(self.cut(format!("cut after item {sequence}")));
        }
        if !self.script.withholds_acknowledgement(sequence) {
            self.end.acknowledge(sequence + 1);
        }
        Ok(())
    }

    /// Breaks the link for both ends.
    fn cut(&self, reason: String) -> Error {
        self.end.cut(reason.clone());
        Error::PeerGone { link: self.link.clone(), reason }
    }
}

//! What a sending end has announced and the receiver does not hold yet: sent once there is a place for it,
//! and held to a clock from then on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{timeout, timeout_at};

use super::{Lane, RECEIVER};
use crate::device::{DeviceBuffer, Event};
use crate::error::{Error, Link, Result};
use crate::sync::Mutex;
use crate::transport::Outbox;
use crate::transport::session::Violation;
use crate::transport::timing::{GOODBYE, after};

/// Payloads that NCCL may have to send at the same time. An honest receiver never is ready for as many
/// before the first has arrived. One that acknowledges what it does not receive keeps no more than these.
const SENDING_MAX: usize = 32;

/// The payloads of an edge, on their way out.
pub(super) struct Payloads {
    /// Not sent yet.
    announced: Mutex<VecDeque<(u64, DeviceBuffer)>>,
    heard: watch::Sender<Heard>,
}

/// What the receiver has said.
#[derive(Clone, Copy, Default)]
struct Heard {
    /// It has a place for every item below.
    ready: u64,
    /// Every item below is in its inbox.
    acknowledged: u64,
}

impl Payloads {
    pub(super) fn new() -> Self {
        Self { announced: Mutex::new(VecDeque::new()), heard: watch::Sender::new(Heard::default()) }
    }

    /// To be sent when its turn comes.
    pub(super) fn add(&self, sequence: u64, source: DeviceBuffer) {
        self.announced.lock().push_back((sequence, source));
    }

    /// The receiver has a place for every item below `upto`, of as many as were announced.
    pub(super) fn hear_ready(&self, upto: u64, announced: u64) -> Result<(), Violation> {
        let before = self.heard.borrow().ready;
        if !(before..=announced).contains(&upto) {
            return Err(Violation(format!(
                "was ready for items below {upto}, of {announced} announced and {before} before"
            )));
        }
        self.heard.send_modify(|heard| heard.ready = upto);
        Ok(())
    }

    /// The receiver's inbox has every item below `upto`.
    pub(super) fn hear_acknowledged(&self, upto: u64) -> Result<(), Violation> {
        let ready = self.heard.borrow().ready;
        if upto > ready {
            return Err(Violation(format!(
                "acknowledged items below {upto}, and was ready for those below {ready}"
            )));
        }
        if let Some((unsent, _)) = self.announced.lock().front().filter(|(unsent, _)| *unsent < upto) {
            return Err(Violation(format!("acknowledged item {unsent} before it was sent")));
        }
        self.heard.send_modify(|heard| heard.acknowledged = upto);
        Ok(())
    }

    /// Sends payloads as the receiver gets ready for them, until that fails or it does not take them.
    pub(super) async fn send(&self, lane: &Lane, items: &Outbox, link: &Link, limit: Duration) -> Error {
        let sent: Result<Infallible> = tokio::select! {
            biased;
            failure = lane.communicator.failed() => return failure,
            error = self.overdue(link, limit) => return error,
            sent = self.send_announced(lane, items, link, limit) => sent,
        };
        match sent {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn send_announced(
        &self,
        lane: &Lane,
        items: &Outbox,
        link: &Link,
        limit: Duration,
    ) -> Result<Infallible> {
        let mut heard = self.heard.subscribe();
        let mut sending: VecDeque<Event> = VecDeque::new();
        loop {
            let upto = heard.borrow_and_update().ready;
            while let Some(source) = self.next(upto) {
                if sending.len() == SENDING_MAX
                    && let Some(oldest) = sending.pop_front()
                {
                    timeout(limit, oldest.completed()).await.unwrap_or_else(|_| {
                        let awaited = format!("rank {} to receive what it acknowledged", link.peer_rank);
                        Err(Error::timeout(awaited, limit))
                    })?;
                }
                let flight = lane.communicator.begin_send(&source, RECEIVER, &lane.stream).await?;
                sending.push_back(flight.event().clone());
                // It keeps the source until then; the receiver acknowledges the item once it is there.
                drop(flight);
                items.progress();
            }
            // Its sender is ours.
            let _ = heard.changed().await;
        }
    }

    /// The next payload, if the receiver has a place for it.
    fn next(&self, upto: u64) -> Option<DeviceBuffer> {
        let mut announced = self.announced.lock();
        match announced.front() {
            Some((sequence, _)) if *sequence < upto => announced.pop_front().map(|(_, source)| source),
            _ => None,
        }
    }

    /// Waits until an item is late that the receiver has a place for: all that it takes from there is the
    /// payload. The receiver has a clock of its own, and knows more, so it is to be heard first.
    async fn overdue(&self, link: &Link, limit: Duration) -> Error {
        let limit = limit.saturating_add(GOODBYE);
        let mut heard = self.heard.subscribe();
        let mut clock = None;
        loop {
            let Heard { ready, acknowledged } = *heard.borrow_and_update();
            if ready == acknowledged {
                clock = None;
                // Its sender is ours.
                let _ = heard.changed().await;
                continue;
            }
            let deadline = match clock {
                Some((item, deadline)) if item == acknowledged => deadline,
                _ => clock.insert((acknowledged, after(limit))).1,
            };
            if timeout_at(deadline, heard.changed()).await.is_err() {
                let awaited =
                    format!("rank {} to receive item {acknowledged}, for which it was ready", link.peer_rank);
                return Error::timeout(awaited, limit);
            }
        }
    }
}

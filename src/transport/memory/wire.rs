//! One directed wire: what is on its way, and who waits for it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::sync::Mutex;
use crate::tensor::Item;

/// What the receiver finds at its end.
#[derive(Debug)]
pub(super) enum Arrival {
    Item(u64, Item),
    /// The sender's graceful end, after so many items.
    Close(u64),
    Aborted(String),
    Gone(String),
}

/// The receiver's last word.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Its user took everything.
    Finished,
    /// Its user left after taking so many.
    Closed {
        taken: u64,
    },
    Aborted(String),
    Gone(String),
}

/// What the sender hears.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) acknowledged: u64,
    pub(super) answer: Option<Answer>,
}

/// The sender's end. Dropping it without a last word leaves the receiver with [`Arrival::Gone`].
#[derive(Debug)]
pub(super) struct SenderEnd(Arc<Mutex<Wire>>);

/// The receiver's end. Dropping it without an answer leaves the sender with [`Answer::Gone`].
#[derive(Debug)]
pub(super) struct ReceiverEnd(Arc<Mutex<Wire>>);

/// The items on their way are those handed out by the outbox and not settled, so the outbox bounds
/// them.
#[derive(Debug, Default)]
struct Wire {
    crossing: VecDeque<Arrival>,
    /// The sender's last word, which comes after what is crossing.
    sender_left: bool,
    acknowledged: u64,
    answer: Option<Answer>,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

pub(super) fn new() -> (SenderEnd, ReceiverEnd) {
    let wire = Arc::new(Mutex::new(Wire::default()));
    (SenderEnd(Arc::clone(&wire)), ReceiverEnd(wire))
}

impl SenderEnd {
    pub(super) fn send(&self, sequence: u64, item: Item) {
        self.push(Arrival::Item(sequence, item));
    }

    pub(super) fn close(&self, items: u64) {
        self.push(Arrival::Close(items));
    }

    pub(super) fn abort(&self, reason: String) {
        self.leave(Arrival::Aborted(reason));
    }

    /// Waits for more than `acknowledged` to be acknowledged, or for an answer. Cancel safe.
    pub(super) async fn response(&self, acknowledged: u64) -> Response {
        poll_fn(|context| {
            let mut wire = self.0.lock();
            if wire.acknowledged > acknowledged || wire.answer.is_some() {
                return Poll::Ready(Response {
                    acknowledged: wire.acknowledged,
                    answer: wire.answer.clone(),
                });
            }
            wire.sender = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn push(&self, arrival: Arrival) {
        let receiver = {
            let mut wire = self.0.lock();
            if wire.answer.is_some() {
                return;
            }
            wire.crossing.push_back(arrival);
            wire.receiver.take()
        };
        wake(receiver);
    }

    fn leave(&self, last_word: Arrival) {
        if !std::mem::replace(&mut self.0.lock().sender_left, true) {
            self.push(last_word);
        }
    }
}

impl Drop for SenderEnd {
    fn drop(&mut self) {
        self.leave(Arrival::Gone("its end of the wire was dropped".into()));
    }
}

impl ReceiverEnd {
    /// Waits for what comes next. Cancel safe.
    pub(super) async fn arrival(&self) -> Arrival {
        poll_fn(|context| {
            let mut wire = self.0.lock();
            if let Some(arrival) = wire.crossing.pop_front() {
                return Poll::Ready(arrival);
            }
            wire.receiver = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Every item below `upto` is in the inbox.
    pub(super) fn acknowledge(&self, upto: u64) {
        let sender = {
            let mut wire = self.0.lock();
            wire.acknowledged = upto;
            wire.sender.take()
        };
        wake(sender);
    }

    /// The last word; the first one counts.
    pub(super) fn answer(&self, answer: Answer) {
        let (sender, lost) = {
            let mut wire = self.0.lock();
            if wire.answer.is_none() {
                wire.answer = Some(answer);
            }
            // Nobody takes what is still crossing.
            (wire.sender.take(), std::mem::take(&mut wire.crossing))
        };
        wake(sender);
        drop(lost);
    }

    /// Breaks the wire.
    pub(super) fn cut(&self, reason: String) {
        self.answer(Answer::Gone(reason));
    }
}

impl Drop for ReceiverEnd {
    fn drop(&mut self) {
        self.answer(Answer::Gone("its end of the wire was dropped".into()));
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

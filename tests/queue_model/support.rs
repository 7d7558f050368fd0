//! Polling by hand, and the room that the reference keeps count of.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use kvpipe::{DType, Error, Item, PipeConfig, Shape, Tensor};
use proptest::prelude::*;
use tokio::runtime::{Builder, Runtime};

/// The largest item; larger ones are refused. Sizes and budgets are small, so that they collide.
pub(crate) const MAX_ITEM_BYTES: usize = 11;

/// Of a send, a reservation or a receive, in the order in which they began.
pub(crate) type Id = u64;

/// What became of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The item got this place in the stream.
    Accepted(u64),
    /// Room was given.
    Permit,
    /// An item with this mark was taken.
    Taken(u8),
    /// There is no room, or no item, now.
    NotNow,
    /// It can't be.
    Refused(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Closed,
    Failed,
    TooLarge,
    Misuse,
}

/// A failure that a scripted transport ends with.
pub(crate) fn broken() -> Error {
    Error::Bug("the wire broke".into())
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        Self::Refused(match error {
            Error::Full | Error::Empty => return Self::NotNow,
            Error::Closed => Why::Closed,
            Error::TooLarge { .. } => Why::TooLarge,
            Error::Misuse(what) if what.contains("driver was dropped") => Why::Failed,
            Error::Misuse(_) => Why::Misuse,
            Error::Bug(_) => Why::Failed,
            other => panic!("nobody caused {other}"),
        })
    }
}

/// What may be held, and what is.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub(crate) budget: usize,
    max_items: usize,
    pub(crate) held_items: usize,
    pub(crate) held_bytes: usize,
    pub(crate) held_bytes_max: usize,
}

impl Room {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        (1..10_usize, 1..5_usize).prop_map(|(budget, max_items)| Self {
            budget,
            max_items,
            held_items: 0,
            held_bytes: 0,
            held_bytes_max: 0,
        })
    }

    pub(crate) fn config(&self) -> PipeConfig {
        PipeConfig {
            max_items: self.max_items,
            max_item_bytes: MAX_ITEM_BYTES,
            ..PipeConfig::default().with_buffer_bytes(self.budget)
        }
    }

    /// Takes room if there is some: within the budget, or alone.
    pub(crate) fn admit(&mut self, bytes: usize) -> bool {
        let fits = bytes == 0 || self.held_bytes + bytes <= self.budget;
        let admitted = self.held_items == 0 || (self.held_items < self.max_items && fits);
        if admitted {
            self.held_items += 1;
            self.held_bytes += bytes;
            self.held_bytes_max = self.held_bytes_max.max(self.held_bytes);
        }
        admitted
    }

    /// Gives back a part of what one item holds.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
    }

    /// Gives back what one item holds.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.held_items -= 1;
        self.held_bytes -= bytes;
    }
}

/// An item with `bytes` of payload, each of them `mark`; without payload it is a None.
pub(crate) fn item(bytes: usize, mark: u8) -> Item {
    (bytes > 0).then(|| {
        Tensor::new(DType::UInt8, Shape::new(&[bytes]).unwrap(), Bytes::from(vec![mark; bytes])).unwrap()
    })
}

/// The mark of an item; 0 for a None.
pub(crate) fn mark(item: &Item) -> u8 {
    item.as_ref().map_or(0, |tensor| tensor.bytes().unwrap()[0])
}

/// A mark that tells an item from those around it.
pub(crate) fn mark_of(id: Id, bytes: usize) -> u8 {
    if bytes == 0 { 0 } else { 1 + (id % 255) as u8 }
}

/// A runtime that is never run: its clock stands still, and deadlines can be set and never pass.
pub(crate) fn still_clock() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// A future that is polled when it was woken, and at first.
pub(crate) struct Task<T> {
    future: Pin<Box<dyn Future<Output = T>>>,
    woken: Arc<Flag>,
}

pub(crate) struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<T> Task<T> {
    pub(crate) fn new(future: impl Future<Output = T> + 'static) -> Self {
        Self { future: Box::pin(future), woken: Arc::new(Flag(AtomicBool::new(true))) }
    }

    /// Wakes it from outside.
    pub(crate) fn wake(&self) {
        self.woken.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }

    /// Polls it if it was woken: the output if it is ready.
    pub(crate) fn turn(&mut self) -> Option<T> {
        if !self.woken.0.swap(false, Ordering::Relaxed) {
            return None;
        }
        let waker = Waker::from(Arc::clone(&self.woken));
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}

/// Tasks that wait, in the order in which they began.
pub(crate) type Waiting<T> = VecDeque<(Id, Task<T>)>;

/// Gives every woken task of a line a turn; those that are ready leave it.
pub(crate) fn turns<T>(waiting: &mut Waiting<T>, mut ready: impl FnMut(Id, T)) {
    waiting.retain_mut(|(id, task)| match task.turn() {
        Some(output) => {
            ready(*id, output);
            false
        }
        None => true,
    });
}

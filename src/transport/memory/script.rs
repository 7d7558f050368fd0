//! What goes wrong on a memory wire, and at which item.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::sync::Mutex;

/// The faults of one direction, by the sequence number of the item that they strike.
#[derive(Clone, Debug, Default)]
pub struct Script {
    faults: BTreeMap<u64, Fault>,
}

/// One thing that goes wrong.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The link breaks before the item is delivered.
    Fail,
    /// The link breaks while the item is being delivered, after room was made for it.
    CutDelivery,
    /// The item is delivered, and the link breaks before its acknowledgement gets back.
    LoseAcknowledgement,
    /// Items from this one on are delivered, but never acknowledged; the link stays up.
    NeverAcknowledge,
    /// The item is delivered once the gate is opened.
    Stall(Gate),
}

impl Script {
    /// No faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fault that strikes the item with this sequence number, counted from 0.
    #[must_use]
    pub fn at(mut self, sequence: u64, fault: Fault) -> Self {
        self.faults.insert(sequence, fault);
        self
    }

    pub(super) fn fault(&self, sequence: u64) -> Option<&Fault> {
        self.faults.get(&sequence)
    }

    pub(super) fn withholds_acknowledgement(&self, sequence: u64) -> bool {
        self.faults.range(..=sequence).any(|(_, fault)| matches!(fault, Fault::NeverAcknowledge))
    }
}

/// Holds back a [`Fault::Stall`] until it is opened. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    state: Arc<Mutex<GateState>>,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    /// One for each edge that is held back, and perhaps some that no longer wait.
    waiting: Vec<Waker>,
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Arc::new(Mutex::new(GateState::default())) }
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.open = true;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until the gate is open.
    pub(super) async fn opened(&self) {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if state.open {
                return Poll::Ready(());
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                state.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

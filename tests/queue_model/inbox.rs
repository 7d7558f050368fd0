//! The receiving end: a scripted transport reserves and fills; users receive, cancel and leave.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use kvpipe::transport::{self, Inbox, Permit};
use kvpipe::{Item, Link, Pipe, Result};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tokio::runtime::Runtime;

use crate::support::{
    Id, MAX_ITEM_BYTES, Outcome, Room, Task, Waiting, Why, broken, item, mark, mark_of, still_clock, turns,
};

/// What can happen to a receiving pipe. An `Index` picks one of those that are there.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Reserve { bytes: usize },
    Fill { which: Index },
    DropPermit { which: Index },
    CancelReserve { which: Index },
    Finish,
    Break,
    DropDriver,
    Recv,
    TryRecv,
    CancelRecv { which: Index },
    Leave,
}

/// How the transport has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    Failed,
}

/// The reference.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    room: Room,
    /// Filled and not taken: payload bytes and mark.
    items: VecDeque<(usize, u8)>,
    taken: u64,
    taken_bytes: u64,
    reserving: VecDeque<(Id, usize)>,
    permits: Vec<(Id, usize)>,
    receiving: VecDeque<Id>,
    end: Option<End>,
    left: bool,
    begun: Id,
    /// What the last event brought the users and the transport, each in order.
    received: Vec<(Id, Outcome)>,
    transported: Vec<(Id, Outcome)>,
}

impl Model {
    fn next_id(&mut self) -> Id {
        self.begun += 1;
        self.begun - 1
    }

    fn reserve(&mut self, bytes: usize) {
        let id = self.next_id();
        match bytes > MAX_ITEM_BYTES {
            true => self.transported.push((id, Outcome::Refused(Why::TooLarge))),
            false => self.reserving.push_back((id, bytes)),
        }
    }

    fn fill(&mut self, which: &Index) {
        if self.permits.is_empty() {
            return;
        }
        let (id, bytes) = self.permits.remove(which.index(self.permits.len()));
        if self.left {
            self.room.release(bytes);
            self.transported.push((id, Outcome::Refused(Why::Closed)));
        } else {
            self.items.push_back((bytes, mark_of(id, bytes)));
        }
    }

    /// The transport is gone, and with it whatever it held.
    fn end(&mut self, end: End) {
        self.end = Some(end);
        self.reserving.clear();
        for (_, bytes) in std::mem::take(&mut self.permits) {
            self.room.release(bytes);
        }
    }

    fn leave(&mut self) {
        self.left = true;
        for (bytes, _) in std::mem::take(&mut self.items) {
            self.room.release(bytes);
        }
    }

    /// What a receive gets now.
    fn receive(&mut self) -> Outcome {
        if self.left {
            return Outcome::Refused(Why::Closed);
        }
        if let Some((bytes, mark)) = self.items.pop_front() {
            self.room.release(bytes);
            self.taken += 1;
            self.taken_bytes += bytes as u64;
            return Outcome::Taken(mark);
        }
        match self.end {
            Some(End::Finished) => Outcome::Refused(Why::Closed),
            Some(End::Failed) => Outcome::Refused(Why::Failed),
            None => Outcome::NotNow,
        }
    }

    /// Serves those who wait at both ends, first come first, until nothing moves.
    fn serve(&mut self) {
        while let Some(&id) = self.receiving.front() {
            match self.receive() {
                Outcome::NotNow => break,
                outcome => self.received.push((id, outcome)),
            }
            self.receiving.pop_front();
        }
        while let Some(&(id, bytes)) = self.reserving.front() {
            let outcome = if self.left {
                Outcome::Refused(Why::Closed)
            } else if self.room.admit(bytes) {
                self.permits.push((id, bytes));
                Outcome::Permit
            } else {
                break;
            };
            self.reserving.pop_front();
            self.transported.push((id, outcome));
        }
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Event;

    fn init_state() -> BoxedStrategy<Self> {
        Room::any()
            .prop_map(|room| Self {
                room,
                items: VecDeque::new(),
                taken: 0,
                taken_bytes: 0,
                reserving: VecDeque::new(),
                permits: Vec::new(),
                receiving: VecDeque::new(),
                end: None,
                left: false,
                begun: 0,
                received: Vec::new(),
                transported: Vec::new(),
            })
            .boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Event> {
        let bytes = 0..MAX_ITEM_BYTES + 2;
        let which = any::<Index>;
        prop_oneof![
            10 => bytes.prop_map(|bytes| Event::Reserve { bytes }),
            10 => which().prop_map(|which| Event::Fill { which }),
            1 => which().prop_map(|which| Event::DropPermit { which }),
            2 => which().prop_map(|which| Event::CancelReserve { which }),
            6 => Just(Event::Recv),
            4 => Just(Event::TryRecv),
            2 => which().prop_map(|which| Event::CancelRecv { which }),
            1 => Just(Event::Finish),
            1 => Just(Event::Break),
            1 => Just(Event::DropDriver),
            1 => Just(Event::Leave),
        ]
        .boxed()
    }

    fn preconditions(state: &Self, event: &Event) -> bool {
        match event {
            Event::Recv | Event::TryRecv | Event::CancelRecv { .. } | Event::Leave => true,
            // Nobody is left to do it.
            _ => state.end.is_none(),
        }
    }

    fn apply(mut state: Self, event: &Event) -> Self {
        state.received.clear();
        state.transported.clear();
        match event {
            Event::Reserve { bytes } => state.reserve(*bytes),
            Event::Fill { which } => state.fill(which),
            Event::DropPermit { which } if !state.permits.is_empty() => {
                let (_, bytes) = state.permits.remove(which.index(state.permits.len()));
                state.room.release(bytes);
            }
            Event::CancelReserve { which } if !state.reserving.is_empty() => {
                let index = which.index(state.reserving.len());
                state.reserving.remove(index);
            }
            Event::CancelRecv { which } if !state.receiving.is_empty() => {
                let index = which.index(state.receiving.len());
                state.receiving.remove(index);
            }
            Event::DropPermit { .. } | Event::CancelReserve { .. } | Event::CancelRecv { .. } => {}
            Event::Recv => {
                let id = state.next_id();
                state.receiving.push_back(id);
            }
            Event::TryRecv => {
                let outcome = (state.next_id(), state.receive());
                state.received.push(outcome);
            }
            Event::Finish => state.end(End::Finished),
            Event::Break | Event::DropDriver => state.end(End::Failed),
            Event::Leave => state.leave(),
        }
        state.serve();
        state
    }
}

/// A step of the scripted transport.
enum Step {
    Reserve { id: Id, bytes: usize },
    Fill(Index),
    DropPermit(Index),
    CancelReserve(Index),
    Finish,
    Break,
}

#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    outcomes: Vec<(Id, Outcome)>,
}

struct Scripted(Arc<Mutex<Script>>);

type Reserving<'a> = Pin<Box<dyn Future<Output = Result<Permit>> + Send + 'a>>;

impl transport::Incoming for Scripted {
    fn link(&self) -> Link {
        Link::new(1, 0)
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        let mut reserving: VecDeque<(Id, usize, Reserving<'_>)> = VecDeque::new();
        let mut permits: Vec<(Id, usize, Permit)> = Vec::new();
        poll_fn(|context| {
            let script = &mut *self.0.lock().unwrap();
            while let Some(step) = script.steps.pop_front() {
                match step {
                    Step::Reserve { id, bytes } => {
                        reserving.push_back((id, bytes, Box::pin(items.reserve(bytes))));
                    }
                    Step::Fill(which) if !permits.is_empty() => {
                        let (id, bytes, permit) = permits.remove(which.index(permits.len()));
                        if let Err(error) = permit.fill(item(bytes, mark_of(id, bytes))) {
                            script.outcomes.push((id, error.into()));
                        }
                    }
                    Step::DropPermit(which) if !permits.is_empty() => {
                        drop(permits.remove(which.index(permits.len())));
                    }
                    Step::CancelReserve(which) if !reserving.is_empty() => {
                        let index = which.index(reserving.len());
                        reserving.remove(index);
                    }
                    Step::Fill(_) | Step::DropPermit(_) | Step::CancelReserve(_) => {}
                    Step::Finish => return Poll::Ready(Ok(())),
                    Step::Break => return Poll::Ready(Err(broken())),
                }
            }
            reserving.retain_mut(|(id, bytes, reserve)| match reserve.as_mut().poll(context) {
                Poll::Ready(Ok(permit)) => {
                    permits.push((*id, *bytes, permit));
                    script.outcomes.push((*id, Outcome::Permit));
                    false
                }
                Poll::Ready(Err(error)) => {
                    script.outcomes.push((*id, error.into()));
                    false
                }
                Poll::Pending => true,
            });
            Poll::Pending
        })
        .await
    }
}

/// A real pipe, and everybody who uses it.
pub(crate) struct Incoming {
    pipe: Pipe,
    driver: Option<Task<()>>,
    script: Arc<Mutex<Script>>,
    receiving: Waiting<Result<Item>>,
    /// Where the users' closing waits; there is nothing to learn from it.
    leaving: Waiting<()>,
    begun: Id,
    received: Vec<(Id, Outcome)>,
    clock: Runtime,
}

impl Incoming {
    fn next_id(&mut self) -> Id {
        self.begun += 1;
        self.begun - 1
    }

    fn step(&mut self, step: Step) {
        self.script.lock().unwrap().steps.push_back(step);
        if let Some(driver) = &self.driver {
            driver.wake();
        }
    }

    /// Polls until nobody is woken.
    fn settle_down(&mut self) {
        let _clock = self.clock.enter();
        while self.driver.as_ref().is_some_and(Task::is_woken)
            || self.receiving.iter().any(|(_, task)| task.is_woken())
            || self.leaving.iter().any(|(_, task)| task.is_woken())
        {
            if self.driver.as_mut().and_then(Task::turn).is_some() {
                self.driver = None;
            }
            turns(&mut self.receiving, |id, got| {
                self.received.push((id, got.map_or_else(Outcome::from, |item| Outcome::Taken(mark(&item)))));
            });
            turns(&mut self.leaving, |_, ()| {});
        }
    }

    fn do_event(&mut self, event: Event) {
        match event {
            Event::Reserve { bytes } => {
                let id = self.next_id();
                self.step(Step::Reserve { id, bytes });
            }
            Event::Fill { which } => self.step(Step::Fill(which)),
            Event::DropPermit { which } => self.step(Step::DropPermit(which)),
            Event::CancelReserve { which } => self.step(Step::CancelReserve(which)),
            Event::Finish => self.step(Step::Finish),
            Event::Break => self.step(Step::Break),
            Event::DropDriver => self.driver = None,
            Event::Recv => {
                let (id, pipe) = (self.next_id(), self.pipe.clone());
                self.receiving.push_back((id, Task::new(async move { pipe.recv().await })));
            }
            Event::TryRecv => {
                let got = self.pipe.try_recv();
                let outcome = got.map_or_else(Outcome::from, |item| Outcome::Taken(mark(&item)));
                let id = self.next_id();
                self.received.push((id, outcome));
            }
            Event::CancelRecv { which } if !self.receiving.is_empty() => {
                let index = which.index(self.receiving.len());
                drop(self.receiving.remove(index));
            }
            Event::CancelRecv { .. } => {}
            Event::Leave => {
                let pipe = self.pipe.clone();
                let closing = async move { pipe.receiver().unwrap().close().await };
                self.leaving.push_back((0, Task::new(closing)));
            }
        }
    }
}

impl StateMachineTest for Incoming {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(model: &Model) -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let (pipe, driver) = Pipe::receive_only(Scripted(Arc::clone(&script)), model.room.config());
        Self {
            pipe,
            driver: Some(Task::new(driver)),
            script,
            receiving: VecDeque::new(),
            leaving: VecDeque::new(),
            begun: 0,
            received: Vec::new(),
            clock: still_clock(),
        }
    }

    fn apply(mut state: Self, model: &Model, event: Event) -> Self {
        state.received.clear();
        state.script.lock().unwrap().outcomes.clear();
        state.do_event(event);
        state.settle_down();
        assert_eq!(state.received, model.received);
        assert_eq!(state.script.lock().unwrap().outcomes, model.transported);
        state
    }

    fn check_invariants(state: &Self, model: &Model) {
        let stats = state.pipe.stats().receive.unwrap();
        assert_eq!((stats.taken_items, stats.taken_bytes), (model.taken, model.taken_bytes));
        assert_eq!(stats.queued_items, model.items.len());
        assert_eq!(stats.queued_bytes, model.items.iter().map(|(bytes, _)| bytes).sum::<usize>());
        assert_eq!(
            (stats.held_bytes, stats.held_bytes_max),
            (model.room.held_bytes, model.room.held_bytes_max)
        );
    }
}

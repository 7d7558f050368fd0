//! The sending end: users send, reserve and cancel; a scripted transport takes, settles and rewinds.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use kvpipe::pipe::SendPermit;
use kvpipe::transport::{self, Outbox};
use kvpipe::{Link, Pipe, Result};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tokio::runtime::Runtime;

use crate::support::{
    Id, MAX_ITEM_BYTES, Outcome, Room, Task, Waiting, Why, broken, item, mark, mark_of, still_clock, turns,
};

/// What can happen to a sending pipe. An `Index` picks one of those that are there.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Send { bytes: usize },
    TrySend { bytes: usize },
    Reserve { bytes: usize },
    UsePermit { which: Index, bytes: usize },
    DropPermit { which: Index },
    CancelWait { which: Index },
    Take,
    Settle { which: Index },
    Rewind { which: Index },
    Finish,
    Break,
    DropDriver,
}

/// The reference.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    room: Room,
    /// Accepted and not settled: payload bytes and mark.
    items: VecDeque<(usize, u8)>,
    settled: u64,
    settled_bytes: u64,
    next: u64,
    handed_out: u64,
    permits: BTreeMap<Id, usize>,
    /// Sends (true) and reservations (false) without room yet.
    waiting: VecDeque<(Id, usize, bool)>,
    closed: bool,
    failed: bool,
    begun: Id,
    /// What the last event brought about, in order.
    outcomes: Vec<(Id, Outcome)>,
    /// What the transport took at the last event.
    taken: Option<(u64, u8)>,
}

impl Model {
    fn accepted(&self) -> u64 {
        self.settled + self.items.len() as u64
    }

    fn refusal(&self) -> Option<Why> {
        match (self.failed, self.closed) {
            (true, _) => Some(Why::Failed),
            (false, true) => Some(Why::Closed),
            (false, false) => None,
        }
    }

    fn begin(&mut self, bytes: usize, sends: bool) {
        let id = self.begun;
        self.begun += 1;
        if bytes > MAX_ITEM_BYTES {
            self.outcomes.push((id, Outcome::Refused(Why::TooLarge)));
        } else {
            self.waiting.push_back((id, bytes, sends));
        }
    }

    fn begin_without_waiting(&mut self, bytes: usize) {
        let id = self.begun;
        self.begun += 1;
        let outcome = if bytes > MAX_ITEM_BYTES {
            Outcome::Refused(Why::TooLarge)
        } else if let Some(why) = self.refusal() {
            Outcome::Refused(why)
        } else if self.waiting.is_empty() && self.room.admit(bytes) {
            self.accept(id, bytes)
        } else {
            Outcome::NotNow
        };
        self.outcomes.push((id, outcome));
    }

    fn accept(&mut self, id: Id, bytes: usize) -> Outcome {
        self.items.push_back((bytes, mark_of(id, bytes)));
        Outcome::Accepted(self.accepted() - 1)
    }

    fn use_permit(&mut self, id: Id, bytes: usize) {
        let Some(reserved) = self.permits.remove(&id) else { return };
        let refusal = if bytes > reserved { Some(Why::Misuse) } else { self.refusal() };
        let outcome = match refusal {
            Some(why) => {
                self.room.release(reserved);
                Outcome::Refused(why)
            }
            None => {
                self.room.shrink(reserved - bytes);
                self.accept(id, bytes)
            }
        };
        self.outcomes.push((id, outcome));
    }

    /// Serves those who wait, first come first.
    fn serve(&mut self) {
        while let Some(&(id, bytes, sends)) = self.waiting.front() {
            let outcome = if let Some(why) = self.refusal() {
                Outcome::Refused(why)
            } else if !self.room.admit(bytes) {
                return;
            } else if sends {
                self.accept(id, bytes)
            } else {
                self.permits.insert(id, bytes);
                Outcome::Permit
            };
            self.waiting.pop_front();
            self.outcomes.push((id, outcome));
        }
    }

    fn take(&mut self) {
        if let Some(&(_, mark)) = self.items.get((self.next - self.settled) as usize) {
            self.taken = Some((self.next, mark));
            self.next += 1;
            self.handed_out = self.handed_out.max(self.next);
        }
    }

    /// A sequence number from the settled ones on, up to what was handed out.
    fn unsettled(&self, which: &Index) -> u64 {
        self.settled + which.index((self.handed_out - self.settled) as usize + 1) as u64
    }

    fn settle(&mut self, upto: u64) {
        while self.settled < upto {
            let (bytes, _) = self.items.pop_front().expect("it was handed out");
            self.room.release(bytes);
            self.settled += 1;
            self.settled_bytes += bytes as u64;
        }
        self.next = self.next.max(upto);
    }
}

fn permit_at(permits: &BTreeMap<Id, usize>, which: &Index) -> Option<Id> {
    (!permits.is_empty()).then(|| *permits.keys().nth(which.index(permits.len())).unwrap())
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Event;

    fn init_state() -> BoxedStrategy<Self> {
        Room::any()
            .prop_map(|room| Self {
                room,
                items: VecDeque::new(),
                settled: 0,
                settled_bytes: 0,
                next: 0,
                handed_out: 0,
                permits: BTreeMap::new(),
                waiting: VecDeque::new(),
                closed: false,
                failed: false,
                begun: 0,
                outcomes: Vec::new(),
                taken: None,
            })
            .boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Event> {
        let bytes = || 0..MAX_ITEM_BYTES + 2;
        let which = any::<Index>;
        prop_oneof![
            8 => bytes().prop_map(|bytes| Event::Send { bytes }),
            4 => bytes().prop_map(|bytes| Event::TrySend { bytes }),
            3 => bytes().prop_map(|bytes| Event::Reserve { bytes }),
            3 => (which(), bytes()).prop_map(|(which, bytes)| Event::UsePermit { which, bytes }),
            1 => which().prop_map(|which| Event::DropPermit { which }),
            2 => which().prop_map(|which| Event::CancelWait { which }),
            10 => Just(Event::Take),
            8 => which().prop_map(|which| Event::Settle { which }),
            2 => which().prop_map(|which| Event::Rewind { which }),
            1 => Just(Event::Finish),
            1 => Just(Event::Break),
            1 => Just(Event::DropDriver),
        ]
        .boxed()
    }

    fn preconditions(state: &Self, event: &Event) -> bool {
        match event {
            // Nobody is left to do it.
            Event::Take | Event::Settle { .. } | Event::Rewind { .. } | Event::Break | Event::DropDriver => {
                !state.failed
            }
            _ => true,
        }
    }

    fn apply(mut state: Self, event: &Event) -> Self {
        state.outcomes.clear();
        state.taken = None;
        match event {
            Event::Send { bytes } => state.begin(*bytes, true),
            Event::Reserve { bytes } => state.begin(*bytes, false),
            Event::TrySend { bytes } => state.begin_without_waiting(*bytes),
            Event::UsePermit { which, bytes } => {
                if let Some(id) = permit_at(&state.permits, which) {
                    state.use_permit(id, *bytes);
                }
            }
            Event::DropPermit { which } => {
                if let Some(id) = permit_at(&state.permits, which) {
                    let bytes = state.permits.remove(&id).expect("it is there");
                    state.room.release(bytes);
                }
            }
            Event::CancelWait { which } if state.waiting.is_empty() => drop(which.index(1)),
            Event::CancelWait { which } => {
                let index = which.index(state.waiting.len());
                state.waiting.remove(index);
            }
            Event::Take => state.take(),
            Event::Settle { which } => state.settle(state.unsettled(which)),
            Event::Rewind { which } => {
                let to = state.unsettled(which);
                state.next = to;
                state.handed_out = to;
            }
            Event::Finish => state.closed = true,
            Event::Break | Event::DropDriver => state.failed = true,
        }
        state.serve();
        state
    }
}

/// A step of the scripted transport.
enum Step {
    Take,
    Settle(u64),
    Rewind(u64),
    Break,
}

#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    taken: Option<(u64, u8)>,
}

struct Scripted(Arc<Mutex<Script>>);

impl transport::Outgoing for Scripted {
    fn link(&self) -> Link {
        Link::new(0, 1)
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        poll_fn(|_| {
            let mut script = self.0.lock().unwrap();
            while let Some(step) = script.steps.pop_front() {
                match step {
                    Step::Take => {
                        script.taken = items.try_next().map(|(sequence, item)| (sequence, mark(&item)));
                    }
                    Step::Settle(upto) => items.settle(upto),
                    Step::Rewind(to) => items.rewind(to),
                    Step::Break => return Poll::Ready(Err(broken())),
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// What a wait of a user brings: the item's place, or a permit to be kept.
enum Got {
    Place(u64),
    Permit(SendPermit),
}

/// A real pipe, and everybody who uses it.
pub(crate) struct Outgoing {
    pipe: Pipe,
    driver: Option<Task<()>>,
    script: Arc<Mutex<Script>>,
    permits: BTreeMap<Id, SendPermit>,
    waiting: Waiting<Result<Got>>,
    begun: Id,
    outcomes: Vec<(Id, Outcome)>,
    clock: Runtime,
}

impl Outgoing {
    fn begin(&mut self, wait: impl Future<Output = Result<Got>> + 'static) {
        self.waiting.push_back((self.begun, Task::new(wait)));
        self.begun += 1;
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
            || self.waiting.iter().any(|(_, t)| t.is_woken())
        {
            if self.driver.as_mut().and_then(Task::turn).is_some() {
                self.driver = None;
            }
            turns(&mut self.waiting, |id, got| {
                self.outcomes.push((
                    id,
                    match got {
                        Ok(Got::Place(sequence)) => Outcome::Accepted(sequence),
                        Ok(Got::Permit(permit)) => {
                            self.permits.insert(id, permit);
                            Outcome::Permit
                        }
                        Err(error) => error.into(),
                    },
                ));
            });
        }
    }

    fn permit_at(&mut self, which: &Index) -> Option<(Id, SendPermit)> {
        let id = (!self.permits.is_empty())
            .then(|| *self.permits.keys().nth(which.index(self.permits.len())).unwrap())?;
        self.permits.remove_entry(&id)
    }

    fn do_event(&mut self, event: Event, model: &Model) {
        match event {
            Event::Send { bytes } => {
                let (pipe, item) = (self.pipe.clone(), item(bytes, mark_of(self.begun, bytes)));
                self.begin(async move { pipe.send(item).await.map(Got::Place) });
            }
            Event::Reserve { bytes } => {
                let pipe = self.pipe.clone();
                self.begin(async move { pipe.reserve(bytes).await.map(Got::Permit) });
            }
            Event::TrySend { bytes } => {
                let sent = self.pipe.try_send(item(bytes, mark_of(self.begun, bytes)));
                self.outcomes.push((self.begun, sent.map_or_else(Outcome::from, Outcome::Accepted)));
                self.begun += 1;
            }
            Event::UsePermit { which, bytes } => {
                if let Some((id, permit)) = self.permit_at(&which) {
                    let sent = permit.send(item(bytes, mark_of(id, bytes)));
                    self.outcomes.push((id, sent.map_or_else(Outcome::from, Outcome::Accepted)));
                }
            }
            Event::DropPermit { which } => drop(self.permit_at(&which)),
            Event::CancelWait { .. } if self.waiting.is_empty() => {}
            Event::CancelWait { which } => {
                let index = which.index(self.waiting.len());
                drop(self.waiting.remove(index));
            }
            Event::Take => self.step(Step::Take),
            // After the event the reference has settled, or handed out, just that far.
            Event::Settle { .. } => self.step(Step::Settle(model.settled)),
            Event::Rewind { .. } => self.step(Step::Rewind(model.next)),
            Event::Break => self.step(Step::Break),
            Event::Finish => self.pipe.sender().unwrap().finish(),
            Event::DropDriver => self.driver = None,
        }
    }
}

impl StateMachineTest for Outgoing {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(model: &Model) -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let (pipe, driver) = Pipe::send_only(Scripted(Arc::clone(&script)), model.room.config());
        Self {
            pipe,
            driver: Some(Task::new(driver)),
            script,
            permits: BTreeMap::new(),
            waiting: VecDeque::new(),
            begun: 0,
            outcomes: Vec::new(),
            clock: still_clock(),
        }
    }

    fn apply(mut state: Self, model: &Model, event: Event) -> Self {
        state.outcomes.clear();
        state.script.lock().unwrap().taken = None;
        state.do_event(event, model);
        state.settle_down();
        assert_eq!(state.outcomes, model.outcomes);
        assert_eq!(state.script.lock().unwrap().taken, model.taken);
        state
    }

    fn check_invariants(state: &Self, model: &Model) {
        let stats = state.pipe.stats().send.unwrap();
        let in_flight = (model.handed_out - model.settled) as usize;
        assert_eq!((stats.delivered_items, stats.delivered_bytes), (model.settled, model.settled_bytes));
        assert_eq!(stats.in_flight_items, in_flight);
        assert_eq!(stats.queued_items, model.items.len() - in_flight);
        let bytes_in_flight: usize = model.items.iter().take(in_flight).map(|(bytes, _)| bytes).sum();
        assert_eq!(stats.in_flight_bytes, bytes_in_flight);
        let bytes_queued: usize = model.items.iter().skip(in_flight).map(|(bytes, _)| bytes).sum();
        assert_eq!(stats.queued_bytes, bytes_queued);
        assert_eq!(
            (stats.held_bytes, stats.held_bytes_max),
            (model.room.held_bytes, model.room.held_bytes_max)
        );
        let sizes = model.items.iter().map(|(bytes, _)| bytes).chain(model.permits.values());
        let alone = sizes.filter(|bytes| **bytes > 0).count() == 1;
        assert!(stats.held_bytes <= model.room.budget || alone, "only one item alone may be over the budget");

        let undelivered: Vec<_> = state
            .pipe
            .undelivered()
            .iter()
            .map(|undelivered| (undelivered.sequence, mark(&undelivered.item), undelivered.in_doubt))
            .collect();
        let expected: Vec<_> = (model.settled..)
            .zip(&model.items)
            .map(|(sequence, (_, mark))| (sequence, *mark, sequence < model.handed_out))
            .collect();
        assert_eq!(undelivered, expected);
    }
}

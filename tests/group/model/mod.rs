//! Groups against a model, in which everything is a list: what each rank sent to each, and to all, who
//! has read how far, and which barrier everybody is in.
//!
//! Ranks make any calls in any order, several at a time. Each call moves on by single polls, and may be
//! dropped at any of them, or run out of time; in one of the two tests the store's connection breaks under
//! operations, before or after they took effect. In the end everything is fetched that was sent, and the
//! store must be empty.
//!
//! The model is exact where the documentation is. A send that was dropped may have been sent or not if
//! another was under way before it; then what arrives decides, for all readers.

mod lists;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use kvpipe::group::WireMode;
use kvpipe::wire::Object;
use kvpipe::{Error, Result};
use proptest::prelude::*;
use proptest::test_runner::Config;
use tokio::runtime::{Builder, Runtime};

use self::lists::{Model, Route};
use crate::support::{Break, Group, SECOND, Watched, groups, text};

const RANKS: usize = 3;

/// What can happen. Of the calls under way, the last to begin is number 0: so a step means the same
/// without those before it, which makes for short counterexamples.
#[derive(Clone, Copy)]
enum Step {
    /// A rank begins a call, which is polled once.
    Begin { rank: usize, call: Call },
    /// One of the calls under way is polled once.
    Poll(usize),
    /// All of them are polled until none gets any further.
    PollAll,
    /// One of them is dropped.
    Drop(usize),
    /// More time passes than any call has.
    TimePasses,
    /// The connection breaks under the next operation.
    Break(Break),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Send { to: usize },
    Receive { from: usize },
    Broadcast,
    ReceiveBroadcast { from: usize },
    Gather,
    Barrier,
}

/// A line each.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Begin { rank, call } => write!(f, "rank {rank} begins {call:?}"),
            Self::Poll(nth) => write!(f, "call {nth} is polled"),
            Self::PollAll => f.write_str("all calls are polled"),
            Self::Drop(nth) => write!(f, "call {nth} is dropped"),
            Self::TimePasses => f.write_str("time passes"),
            Self::Break(Break::BeforeItTakesEffect) => f.write_str("the next operation breaks at once"),
            Self::Break(Break::AfterItTookEffect) => f.write_str("the next operation breaks once done"),
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send { to } => write!(f, "to send to {to}"),
            Self::Receive { from } => write!(f, "to receive from {from}"),
            Self::Broadcast => f.write_str("to broadcast"),
            Self::ReceiveBroadcast { from } => write!(f, "to receive {from}'s broadcast"),
            Self::Gather => f.write_str("to gather"),
            Self::Barrier => f.write_str("a barrier"),
        }
    }
}

fn call() -> impl Strategy<Value = (usize, Call)> {
    // Of the other ranks, or this one.
    (0..RANKS, 0..6, 1..RANKS).prop_map(|(rank, kind, distance)| {
        let other = (rank + distance) % RANKS;
        let call = match kind {
            0 => Call::Send { to: other },
            1 => Call::Receive { from: other },
            2 => Call::Broadcast,
            3 => Call::ReceiveBroadcast { from: other },
            4 => Call::Gather,
            _ => Call::Barrier,
        };
        (rank, call)
    })
}

fn steps(breaks: u32) -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![Just(Break::BeforeItTakesEffect), Just(Break::AfterItTookEffect)];
    let step = prop_oneof![
        12 => call().prop_map(|(rank, call)| Step::Begin { rank, call }),
        12 => (0..4_usize).prop_map(Step::Poll),
        4 => Just(Step::PollAll),
        3 => (0..4_usize).prop_map(Step::Drop),
        1 => Just(Step::TimePasses),
        breaks => how.prop_map(Step::Break),
    ];
    prop::collection::vec(step, 1..60)
}

fn config() -> Config {
    Config { cases: 256, max_shrink_iters: 5_000, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn calls_dropped_or_late_anywhere_lose_and_double_nothing_and_leave_no_key(steps in steps(0)) {
        World::new().run(&steps);
    }

    #[test]
    fn connections_that_break_under_any_operation_lose_and_double_nothing(steps in steps(3)) {
        World::new().run(&steps);
    }
}

/// The group, and what it should be.
struct World {
    runtime: Runtime,
    store: Watched,
    groups: Vec<Arc<Group>>,
    under_way: Vec<UnderWay>,
    model: Model,
    objects: usize,
    breaks: usize,
    errors: usize,
}

/// A call that has begun.
struct UnderWay {
    rank: usize,
    call: Call,
    /// What it sends.
    object: usize,
    is_late: bool,
    future: Pin<Box<dyn Future<Output = Result<Vec<Object>>>>>,
    woken: Arc<Flag>,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl World {
    fn new() -> Self {
        let store = Watched::yielding();
        let groups = groups(&store, WireMode::Native, RANKS).into_iter().map(Arc::new).collect();
        Self {
            runtime: Builder::new_current_thread().enable_time().start_paused(true).build().unwrap(),
            store,
            groups,
            under_way: Vec::new(),
            model: Model::default(),
            objects: 0,
            breaks: 0,
            errors: 0,
        }
    }

    fn run(mut self, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Begin { rank, call } => self.begin(rank, call),
                Step::Poll(nth) => self.nth_last(nth).into_iter().for_each(|place| self.poll(place)),
                Step::PollAll => self.poll_all(),
                Step::Drop(nth) => self.nth_last(nth).into_iter().for_each(|place| self.drop_call(place)),
                Step::TimePasses => self.pass_time(),
                Step::Break(how) => self.break_next(how),
            }
        }
        self.end();
    }

    fn begin(&mut self, rank: usize, call: Call) {
        if !self.model.allows(rank, call) {
            return;
        }
        let object = self.objects;
        self.objects += 1;
        self.model.begin(rank, call, object);
        let (group, sent) = (Arc::clone(&self.groups[rank]), said(object));
        let future = async move {
            match call {
                Call::Send { to } => group.send_obj_timeout(&sent, to, SECOND).await.map(|()| vec![]),
                Call::Receive { from } => {
                    group.recv_obj_timeout(from, SECOND).await.map(|object| vec![object])
                }
                Call::Broadcast => {
                    let broadcast = group.broadcast_obj_timeout(Some(&sent), rank, SECOND).await;
                    broadcast.map(|object| vec![object])
                }
                Call::ReceiveBroadcast { from } => {
                    group.broadcast_obj_timeout(None, from, SECOND).await.map(|object| vec![object])
                }
                Call::Gather => group.all_gather_obj_timeout(&sent, SECOND).await,
                Call::Barrier => group.barrier_timeout(SECOND).await.map(|()| vec![]),
            }
        };
        let woken = Arc::new(Flag(AtomicBool::new(true)));
        self.under_way.push(UnderWay { rank, call, object, is_late: false, future: Box::pin(future), woken });
        self.poll(self.under_way.len() - 1);
    }

    /// Polls a call if it was woken, which says whether it is worth another look.
    fn poll(&mut self, place: usize) {
        let call = &mut self.under_way[place];
        if !call.woken.0.swap(false, Ordering::Relaxed) {
            return;
        }
        let waker = Waker::from(Arc::clone(&call.woken));
        let _time = self.runtime.enter();
        if let Poll::Ready(outcome) = call.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            let UnderWay { rank, call, object, is_late, .. } = self.under_way.remove(place);
            if let Err(error) = &outcome {
                self.check_error(error, is_late);
            }
            self.model.end(
                rank,
                call,
                object,
                outcome.ok().map(|objects| objects.iter().map(number).collect()),
            );
        }
    }

    fn check_error(&mut self, error: &Error, is_late: bool) {
        match error {
            Error::Timeout { .. } => assert!(is_late, "too early: {error}"),
            Error::Io { .. } => {
                self.errors += 1;
                assert!(self.errors <= self.breaks, "nothing broke: {error}");
            }
            error => panic!("nobody caused {error}"),
        }
    }

    fn poll_all(&mut self) {
        while let Some(place) = self.under_way.iter().position(|call| call.woken.0.load(Ordering::Relaxed)) {
            self.poll(place);
        }
        let late = self.under_way.iter().find(|call| call.is_late);
        assert!(late.is_none(), "a call goes on after its time");
        let waiting: Vec<_> = self.under_way.iter().map(|call| (call.rank, call.call)).collect();
        self.model.check_at_rest(&waiting);
    }

    fn drop_call(&mut self, place: usize) {
        let UnderWay { rank, call, object, .. } = self.under_way.remove(place);
        self.model.end(rank, call, object, None);
    }

    fn nth_last(&self, nth: usize) -> Option<usize> {
        self.under_way.len().checked_sub(nth + 1)
    }

    fn pass_time(&mut self) {
        self.runtime.block_on(tokio::time::advance(2 * SECOND));
        self.under_way.iter_mut().for_each(|call| call.is_late = true);
    }

    fn break_next(&mut self, how: Break) {
        if !self.store.breaks() {
            self.store.break_after(0, how);
            self.breaks += 1;
        }
    }

    /// Calls again whatever did not come to an end, and fetches everything.
    fn end(mut self) {
        self.poll_all();
        while !self.under_way.is_empty() {
            self.drop_call(0);
        }
        self.breaks -= usize::from(self.store.break_no_more());
        self.finish_gatherings();
        let ranks = || 0..RANKS;
        for rank in ranks() {
            self.complete(rank, Call::Broadcast);
            ranks().filter(|&to| to != rank).for_each(|to| self.complete(rank, Call::Send { to }));
        }
        for (rank, from) in ranks().flat_map(|rank| ranks().map(move |from| (rank, from))) {
            while self.model.owes(Route { from, to: Some(rank) }, rank) {
                self.complete(rank, Call::Receive { from });
            }
            while rank != from && self.model.owes(Route { from, to: None }, rank) {
                self.complete(rank, Call::ReceiveBroadcast { from });
            }
        }
        self.finish_barriers();
        let left = self.store.keys();
        // An object and the count of its readers, or a mark that was set again.
        assert!(left.len() <= 2 * self.breaks, "{left:?} left behind after {} breaks", self.breaks);
    }

    /// Whoever has begun to gather ends it; the others give it something to gather.
    fn finish_gatherings(&mut self) {
        for _ in 0..2 * RANKS {
            for rank in 0..RANKS {
                let begun = !self.model.gathering[rank].is_empty();
                self.begin(rank, if begun { Call::Gather } else { Call::Broadcast });
            }
            self.poll_all();
        }
        assert!(self.under_way.is_empty(), "gathering does not come to an end");
    }

    fn finish_barriers(&mut self) {
        let last = self.model.passed.iter().max().copied().unwrap_or_default() + 1;
        // One for who is behind, one for what fails yet.
        for _ in 0..3 {
            for rank in 0..RANKS {
                if self.model.passed[rank] < last {
                    self.begin(rank, Call::Barrier);
                }
            }
            self.poll_all();
        }
        assert_eq!(self.model.passed, [last; RANKS], "a barrier is not passed");
    }

    /// A call that has no reason to wait. An earlier one may have left something that fails yet.
    fn complete(&mut self, rank: usize, call: Call) {
        let mut errors = None;
        while errors != Some(self.errors) {
            errors = Some(self.errors);
            self.begin(rank, call);
            self.poll_all();
            assert!(self.under_way.is_empty(), "rank {rank} has begun {call:?}, and need not wait");
        }
    }
}

fn said(object: usize) -> Object {
    text(object.to_string())
}

fn number(object: &Object) -> usize {
    match object {
        Object::Text(number) => number.parse().unwrap(),
        other => panic!("nobody sent {other:?}"),
    }
}

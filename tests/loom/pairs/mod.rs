//! Every operation against every other, in every interleaving: what comes of it must be what comes
//! of it when the two take turns, and both orders must really occur.
//!
//! A party is a future. Each of its polls is one step, a lock section or a few; an operation of two
//! steps (a cancelled wait: begun, dropped) takes them in two polls. In the *reference* one thread
//! polls the two parties in every order, woken or not. In the *model* each has a thread, and is
//! polled again only when it was woken: a wake-up that is lost, and a section that is not one, gives
//! an outcome that the reference does not have.

mod inbox;
mod outbox;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use kvpipe::pipe::Driver;
use kvpipe::{Error, Item, Pipe};
use loom::thread;

use crate::support::{executions, mark};

/// What one side does, and in words what came of it.
type Party = Pin<Box<dyn Future<Output = String> + Send>>;

/// A pipe at the moment when its parties act on it.
struct Scene {
    parties: Vec<Party>,
    /// What can be seen of the pipe once they have acted.
    look: Box<dyn FnOnce() -> String>,
}

/// Two parties take so many turns in the reference: enough for every order of two steps each.
const TURNS: u32 = 4;

/// Explores a scene of two in every interleaving, and gives their number.
fn as_if_in_turns(name: &str, scene: impl Fn() -> Scene + Send + Sync + 'static) -> usize {
    let scene = Arc::new(scene);
    let [expected, seen]: [Arc<Mutex<BTreeSet<String>>>; 2] = Default::default();

    let (reference, outcomes) = (Arc::clone(&scene), Arc::clone(&expected));
    executions(&format!("{name}, in turns"), None, move || {
        for order in 0..1 << TURNS {
            outcomes.lock().unwrap().insert(in_turns(reference(), order));
        }
    });
    let (allowed, outcomes) = (Arc::clone(&expected), Arc::clone(&seen));
    let explored = executions(name, None, move || {
        let Scene { parties, look } = scene();
        let outcome = outcome(at_once(parties), look);
        let allowed = allowed.lock().unwrap();
        assert!(allowed.contains(&outcome), "{outcome}, and not one of {allowed:#?}");
        outcomes.lock().unwrap().insert(outcome);
    });
    assert_eq!(*seen.lock().unwrap(), *expected.lock().unwrap(), "{name}: they did not race");
    explored
}

/// Explores a scene of any number: whoever waits in the end must have nothing to wait for any more
/// than it knows of. Gives the number of executions.
fn nobody_is_forgotten(name: &str, scene: impl Fn() -> Scene + Send + Sync + 'static) -> usize {
    executions(name, Some(2), move || {
        let Scene { parties, look } = scene();
        let mut actors = at_once(parties);
        for actor in &mut actors {
            let waits = actor.outcome.is_none();
            actor.poll();
            assert!(!waits || actor.outcome.is_none(), "was not woken: {:?}", actor.outcome);
        }
        outcome(actors, look);
    })
}

/// One thread polls both, in the order that the bits of `order` give, and then what is left.
fn in_turns(scene: Scene, order: u32) -> String {
    let mut actors: Vec<_> = scene.parties.into_iter().map(Actor::new).collect();
    for turn in 0..TURNS {
        actors[(order >> turn & 1) as usize].poll();
    }
    for _ in 0..TURNS {
        actors.iter_mut().for_each(Actor::poll);
    }
    outcome(actors, scene.look)
}

/// Each party has a thread, and is polled for as long as it is woken.
fn at_once(parties: Vec<Party>) -> Vec<Actor> {
    let mut actors: Vec<_> = parties.into_iter().map(Actor::new).collect();
    let mut first = actors.remove(0);
    let run = |mut actor: Actor| {
        actor.run();
        actor
    };
    let others: Vec<_> = actors.into_iter().map(|actor| thread::spawn(move || run(actor))).collect();
    first.run();
    let mut actors = vec![first];
    actors.extend(others.into_iter().map(|other| other.join().unwrap()));
    while actors.iter().any(Actor::is_woken) {
        actors.iter_mut().for_each(Actor::run);
    }
    actors
}

fn outcome(actors: Vec<Actor>, look: impl FnOnce() -> String) -> String {
    // What still waits is given up by this.
    let mut outcomes: Vec<_> =
        actors.into_iter().map(|actor| actor.outcome.unwrap_or("waits".into())).collect();
    outcomes.push(look());
    outcomes.join(" | ")
}

/// A party under way. Loom need not see its waker: it is read only by who polls, after a poll, and
/// once all threads are joined.
struct Actor {
    party: Option<Party>,
    outcome: Option<String>,
    woken: Arc<Flag>,
}

impl Actor {
    fn new(party: Party) -> Self {
        Self { party: Some(party), outcome: None, woken: Arc::new(Flag(AtomicBool::new(true))) }
    }

    fn is_woken(&self) -> bool {
        self.party.is_some() && self.woken.0.load(Ordering::Relaxed)
    }

    fn run(&mut self) {
        while self.is_woken() {
            self.poll();
        }
    }

    fn poll(&mut self) {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        let Some(party) = &mut self.party else { return };
        if let Poll::Ready(outcome) = party.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.outcome = Some(outcome);
            self.party = None;
        }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A step ends here.
async fn step() {
    let mut first = true;
    poll_fn(|context| {
        context.waker().wake_by_ref();
        match std::mem::take(&mut first) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    })
    .await;
}

/// A future begun in one step, and, if it is not ready, dropped in the next.
async fn cancelled<F: Future>(future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    match poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
        Poll::Ready(output) => Some(output),
        Poll::Pending => {
            step().await;
            None
        }
    }
}

/// A future that is ready at once, if it ever is.
fn now<F: Future>(future: F) -> Option<F::Output> {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// The transport's side of a scene: a driver that stands where its script has paused.
struct Transport {
    driver: Arc<Mutex<Option<Driver>>>,
    script: Script,
}

/// What a transport's script has to say: it prepares, pauses, acts when it is polled again, and after
/// that looks at its queue whenever it is polled.
#[derive(Clone, Default)]
struct Script {
    said: Arc<Mutex<Option<String>>>,
    sees: Arc<Mutex<Option<String>>>,
}

/// What the transport did.
enum Did {
    /// It goes on.
    Said(String),
    /// It returns.
    Ended(kvpipe::Result<()>),
}

impl Transport {
    /// Brings a driver to the pause of its script.
    fn paused(mut driver: Driver, script: Script) -> Self {
        assert!(now(&mut driver).is_none(), "the script does not pause");
        Self { driver: Arc::new(Mutex::new(Some(driver))), script }
    }

    /// What the script does after its pause.
    fn act(&self) -> Party {
        let (driver, script) = (Arc::clone(&self.driver), self.script.clone());
        Box::pin(poll_fn(move |context| {
            // Nobody else has the driver before the threads are joined: this lock never waits.
            if let Some(driver) = driver.lock().unwrap().as_mut() {
                let _ = Pin::new(driver).poll(context);
            }
            script.said.lock().unwrap().take().map_or(Poll::Pending, Poll::Ready)
        }))
    }

    /// Drops the driver.
    fn dropped(&self) -> Party {
        let driver = Arc::clone(&self.driver);
        Box::pin(async move {
            drop(driver.lock().unwrap().take());
            "dropped".into()
        })
    }

    /// What the script sees now, if it is still there and has acted.
    fn sees(self) -> String {
        let _ = self.driver.lock().unwrap().take().map(now);
        self.script.sees.lock().unwrap().take().unwrap_or("nothing".into())
    }
}

impl Script {
    /// The end of every script.
    async fn finish(&self, did: Did, sees: impl Fn() -> String) -> kvpipe::Result<()> {
        match did {
            Did::Said(what) => {
                *self.said.lock().unwrap() = Some(what);
                // The look is no part of the act.
                step().await;
                poll_fn(|_| {
                    *self.sees.lock().unwrap() = Some(sees());
                    Poll::Pending
                })
                .await
            }
            Did::Ended(result) => {
                *self.said.lock().unwrap() = Some("ended".into());
                result
            }
        }
    }
}

fn broken() -> Error {
    Error::Misuse("the wire broke".into())
}

/// A `None` is marked 0.
fn mark_of(item: &Item) -> u8 {
    item.as_ref().map_or(0, |_| mark(item))
}

fn shown<T: Debug>(result: kvpipe::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => error.to_string(),
    }
}

/// What a user does with a pipe.
struct Use {
    name: &'static str,
    act: fn(Pipe) -> Party,
    role: Role,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Acts,
    /// Changes nothing, so that no third party can depend on it.
    Looks,
    /// Nobody has the pipe any more when it is done.
    Leaves,
}

impl Use {
    const fn new(name: &'static str, act: fn(Pipe) -> Party) -> Self {
        Self { name, act, role: Role::Acts }
    }

    const fn look(name: &'static str, act: fn(Pipe) -> Party) -> Self {
        Self { name, act, role: Role::Looks }
    }

    const fn last(name: &'static str, act: fn(Pipe) -> Party) -> Self {
        Self { name, act, role: Role::Leaves }
    }
}

/// What a transport does; without an act, its driver is dropped.
type Turn<A> = (&'static str, Option<A>);

/// One end of a pipe: how scenes begin there, and what is done.
trait End: 'static {
    type Held: Copy + Debug + Send + Sync + 'static;
    type Act: Copy + Send + Sync + 'static;
    const NAME: &'static str;
    const BEGINNINGS: &'static [Self::Held];
    const USES: &'static [Use];
    const TURNS: &'static [Turn<Self::Act>];
    /// Those that change nothing.
    const LOOKS: &'static [Turn<Self::Act>];

    /// A pipe that holds so much, and its transport at the pause before its act.
    fn begin(held: Self::Held, act: Option<Self::Act>) -> (Pipe, Transport);

    fn user_sees(pipe: &Pipe) -> String;

    /// What a last attempt to use the pipe comes to.
    fn attempt(pipe: &Pipe) -> String;
}

fn scene<E: End>(held: E::Held, users: &[&Use], turn: Option<Turn<E::Act>>) -> Scene {
    let (pipe, transport) = E::begin(held, turn.and_then(|(_, act)| act));
    let mut parties: Vec<_> = users.iter().map(|user| (user.act)(pipe.clone())).collect();
    if let Some((_, act)) = turn {
        parties.push(if act.is_some() { transport.act() } else { transport.dropped() });
    }
    let kept = users.iter().all(|user| user.role != Role::Leaves).then_some(pipe);
    let look = move || {
        let user_sees = kept.as_ref().map(E::user_sees);
        let transport_sees = transport.sees();
        format!("{user_sees:?} | {transport_sees} | {:?}", kept.as_ref().map(E::attempt))
    };
    Scene { parties, look: Box::new(look) }
}

/// Every user's operation against every one of the transport's.
fn users_and_transport<E: End>() {
    let mut sum = 0;
    for &held in E::BEGINNINGS {
        for user in E::USES {
            for &turn in E::TURNS.iter().chain(E::LOOKS) {
                let name = format!("{}, {held:?}: {}, {}", E::NAME, user.name, turn.0);
                sum += as_if_in_turns(&name, move || scene::<E>(held, &[user], Some(turn)));
            }
        }
    }
    println!("pairs_{}_transport: {sum} executions without a bound", E::NAME);
}

/// Every user's operation against every other user's.
fn users_and_users<E: End>() {
    let mut sum = 0;
    for &held in E::BEGINNINGS {
        for [left, right] in twos(E::USES.iter()) {
            let name = format!("{}, {held:?}: {}, {}", E::NAME, left.name, right.name);
            sum += as_if_in_turns(&name, move || scene::<E>(held, &[left, right], None));
        }
    }
    println!("pairs_{}_users: {sum} executions without a bound", E::NAME);
}

/// Any two users' operations and any of the transport's, if all of them change something.
fn users_and_users_and_transport<E: End>() {
    let mut sum = 0;
    for &held in E::BEGINNINGS {
        for [left, right] in twos(E::USES.iter().filter(|user| user.role != Role::Looks)) {
            for &turn in E::TURNS {
                let name = format!("{}, {held:?}: {}, {}, {}", E::NAME, left.name, right.name, turn.0);
                sum += nobody_is_forgotten(&name, move || scene::<E>(held, &[left, right], Some(turn)));
            }
        }
    }
    println!("trios_{}: {sum} executions at bound 2", E::NAME);
}

/// Every two of them, each with itself too.
fn twos<'a>(uses: impl Iterator<Item = &'a Use> + Clone) -> impl Iterator<Item = [&'a Use; 2]> {
    uses.clone()
        .enumerate()
        .flat_map(move |(index, left)| uses.clone().skip(index).map(move |right| [left, right]))
}

//! Running scenarios.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use kvpipe::transport::{Guarantees, Transport};
use tokio::runtime::{Builder, Runtime};

use super::simulated::{self, Ground};
use super::{AnyBackend, Backend};

/// A scenario that takes this long hangs. It only bounds the wait for a failing test.
pub const HANG: Duration = Duration::from_secs(120);

/// One scenario of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    group: &'static str,
    name: &'static str,
    needs: fn(&Guarantees) -> bool,
    body: Body,
}

/// How a scenario runs.
#[derive(Clone, Copy, Debug)]
enum Body {
    /// As a task.
    Task(fn(AnyBackend) -> Pin<Box<dyn Future<Output = ()>>>),
    /// On a plain thread, outside of any runtime. The runtime that it is given is where a transport may
    /// be set up.
    Thread(fn(AnyBackend, &Runtime)),
}

macro_rules! body {
    (task $scenario:path) => {
        Body::Task(|backend| Box::pin($scenario(backend)))
    };
    (thread $scenario:path) => {
        Body::Thread($scenario)
    };
}

static SCENARIOS: &[Scenario] = crate::__conformance_groups!(__conformance_list);

/// All scenarios, for a harness of your own; [`conformance!`](crate::conformance!) makes tests of them.
#[must_use]
pub fn scenarios() -> &'static [Scenario] {
    SCENARIOS
}

/// The scenario of that group and name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn scenario(group: &str, name: &str) -> Scenario {
    let named = |scenario: &&Scenario| scenario.group == group && scenario.name == name;
    *SCENARIOS.iter().find(named).expect("a scenario of that name")
}

impl Scenario {
    /// The group that it belongs to, named as its module.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.group
    }

    /// What must hold.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it on a runtime of its own, unless the wire does not declare what the group rests on.
    ///
    /// # Panics
    /// If it does not hold.
    pub fn run(&self, backend: impl Backend) {
        let backend = AnyBackend::new(backend);
        match self.body {
            Body::Task(_) => runtime().block_on(self.attempt(backend)),
            Body::Thread(scenario) => on_a_thread(backend, self.needs, scenario),
        }
    }

    /// Runs it in the simulation of each seed.
    ///
    /// # Panics
    /// If it does not hold, and the seed and the last events are printed; or if it needs real threads,
    /// as those of the group `threads` do.
    pub fn simulate<B: Backend>(&self, seeds: Range<u64>, backend: fn(Ground) -> B) {
        assert!(matches!(self.body, Body::Task(_)), "a simulation has one thread");
        let scenario = *self;
        for seed in seeds {
            let run = simulated::run(seed, |ground| scenario.attempt(AnyBackend::new(backend(ground))));
            run.unwrap_or_else(|failed| panic!("{}::{}, seed {seed}: {failed}", self.group, self.name));
        }
    }

    /// Runs it on the current runtime.
    async fn attempt(self, backend: AnyBackend) {
        if let Body::Task(scenario) = self.body
            && applies(&backend, self.needs).await
        {
            tokio::time::timeout(HANG, scenario(backend)).await.expect("the scenario hangs");
        }
    }
}

fn on_a_thread(backend: AnyBackend, needs: fn(&Guarantees) -> bool, scenario: fn(AnyBackend, &Runtime)) {
    let (ended, end) = mpsc::channel::<()>();
    #[allow(clippy::disallowed_methods, reason = "a thread that hangs must not take the test with it")]
    let thread = std::thread::spawn(move || {
        let _ended = ended;
        let runtime = runtime();
        if runtime.block_on(applies(&backend, needs)) {
            scenario(backend, &runtime);
        }
    });
    // Nothing is ever sent: the thread ends, or the time does.
    assert_eq!(end.recv_timeout(HANG), Err(RecvTimeoutError::Disconnected), "the scenario hangs");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn applies(backend: &AnyBackend, needs: fn(&Guarantees) -> bool) -> bool {
    let guarantees = backend.pair().await.0.guarantees();
    let applies = needs(&guarantees);
    if !applies {
        println!("skipped: the wire declares {guarantees:?}");
    }
    applies
}

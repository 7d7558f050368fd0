//! Running scenarios.

use std::future::Future;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use kvpipe::transport::{Guarantees, Transport};
use tokio::runtime::{Builder, Runtime};

use super::Backend;

/// A scenario that takes this long hangs. It only bounds the wait for a failing test.
pub const HANG: Duration = Duration::from_secs(120);

/// All scenarios, for a harness of your own; [`conformance!`](crate::conformance!) makes tests of them.
#[must_use]
pub fn scenarios<B: Backend>() -> Vec<Scenario<B>> {
    crate::__conformance_groups!(__conformance_list, ())
}

/// One scenario of the suite, for one kind of backend.
pub struct Scenario<B> {
    group: &'static str,
    name: &'static str,
    body: Box<dyn Fn(B)>,
}

impl<B: Backend> Scenario<B> {
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
    pub fn run(&self, backend: B) {
        (self.body)(backend);
    }

    pub(super) fn new(group: &'static str, name: &'static str, body: impl Fn(B) + 'static) -> Self {
        Self { group, name, body: Box::new(body) }
    }
}

impl<B> std::fmt::Debug for Scenario<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}::{}", self.group, self.name)
    }
}

/// Runs a scenario on a runtime with two threads.
pub fn task<B: Backend, F: Future<Output = ()>>(
    backend: B,
    needs: fn(&Guarantees) -> bool,
    scenario: impl FnOnce(B) -> F,
) {
    runtime().block_on(async {
        if applies(&backend, needs).await {
            tokio::time::timeout(HANG, scenario(backend)).await.expect("the scenario hangs");
        }
    });
}

/// Runs a scenario on a plain thread, outside of any runtime. The runtime that it is given is where a
/// transport may be set up.
pub fn thread<B: Backend>(
    backend: B,
    needs: fn(&Guarantees) -> bool,
    scenario: impl FnOnce(B, &Runtime) + Send + 'static,
) {
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

async fn applies<B: Backend>(backend: &B, needs: fn(&Guarantees) -> bool) -> bool {
    let guarantees = backend.pair().await.0.guarantees();
    let applies = needs(&guarantees);
    if !applies {
        println!("skipped: the wire declares {guarantees:?}");
    }
    applies
}

//! std or loom: the only place that names either.
//!
//! Everything that loom must see (the queue, the pipe, the memory transport) takes its lock from here,
//! and has no other way for threads to meet; what of it waits for a time, waits here. Reference counts
//! are std's also under loom: nothing depends on when they reach zero.

#[cfg(loom)]
pub(crate) use loom::{future::block_on, sync::MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::MutexGuard;
#[cfg(loom)]
use std::time::Duration;

#[cfg(not(loom))]
pub(crate) use tokio::time::{sleep, timeout};

/// A mutex whose `lock` can't fail: a panic of another holder does not take ours down, because no
/// critical section here leaves a broken state behind.
#[derive(Debug)]
pub(crate) struct Mutex<T> {
    #[cfg(loom)]
    inner: loom::sync::Mutex<T>,
    #[cfg(not(loom))]
    inner: std::sync::Mutex<T>,
}

impl<T> Mutex<T> {
    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Self {
        Self { inner: loom::sync::Mutex::new(value) }
    }

    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Self {
        Self { inner: std::sync::Mutex::new(value) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Runs a future on this thread, parking it between polls.
#[cfg(not(loom))]
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    use std::task::{Context, Poll, Wake, Waker};

    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Loom has no time: what takes no time is over at once, and everything else never.
#[cfg(loom)]
pub(crate) async fn sleep(duration: Duration) {
    if !duration.is_zero() {
        std::future::pending().await
    }
}

/// As [`sleep`]: nothing is ready in no time but what is ready already.
#[cfg(loom)]
pub(crate) async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Duration> {
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = sleep(duration) => Err(duration),
    }
}

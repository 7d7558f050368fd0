//! What an interrupt, ^C on a terminal, does to a batch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// From now on the first interrupt sets what this gives, and the second one ends the process. Where that
/// can't be had an interrupt does what it always does.
pub(crate) fn listen() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    if let Err(error) = set_on_interrupt(Arc::clone(&interrupted)) {
        eprintln!("can't listen for interrupts: {error}");
    }
    interrupted
}

fn set_on_interrupt(interrupted: Arc<AtomicBool>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut interrupts = {
        let _within = runtime.enter();
        signal(SignalKind::interrupt())?
    };
    let listening = async move {
        interrupts.recv().await;
        interrupted.store(true, Ordering::Relaxed);
        eprintln!("\nending with the worlds that are running; once more ends it now");
        interrupts.recv().await;
        std::process::exit(crate::INTERRUPTED.into());
    };
    let thread = std::thread::Builder::new().name("interrupts".into());
    thread.spawn(move || runtime.block_on(listening)).map(drop)
}

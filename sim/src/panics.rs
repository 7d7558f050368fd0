//! Panics on the thread of a simulation: a runtime catches those of its tasks, and where nobody waits for a
//! task nobody would hear of it.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;
use std::sync::Once;

thread_local! {
    /// What has panicked on this thread, while somebody listens.
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    static HUSHED: Cell<bool> = const { Cell::new(false) };
}

/// Hears of every panic on this thread, until it is dropped; not any more once somebody else sets a hook.
#[derive(Debug)]
pub(crate) struct Listener(());

impl Listener {
    pub(crate) fn new() -> Self {
        set_hook();
        HEARD.set(Some(Vec::new()));
        Self(())
    }

    /// What has panicked since the last time, and where.
    pub(crate) fn take(&self) -> Vec<String> {
        HEARD.with_borrow_mut(|heard| heard.as_mut().map(std::mem::take).unwrap_or_default())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        HEARD.set(None);
    }
}

/// Prints nothing of what panics in `act` on this thread.
pub(crate) fn hushed<T>(act: impl FnOnce() -> T) -> T {
    set_hook();
    HUSHED.set(true);
    let result = act();
    HUSHED.set(false);
    result
}

/// What was said in a panic.
pub(crate) fn said(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

fn set_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            note(panic);
            if !HUSHED.get() {
                before(panic);
            }
        }));
    });
}

fn note(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or(String::new(), |place| format!(" at {place}"));
    let what = format!("{:?}{place}", said(panic.payload()));
    HEARD.with_borrow_mut(|heard| heard.as_mut().map(|heard| heard.push(what)));
}

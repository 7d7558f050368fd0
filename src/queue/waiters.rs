//! Who waits for a queue, in order of arrival, and what is left to do once its lock is released.

use std::collections::VecDeque;
use std::task::Waker;

/// Waiting tasks, first come first.
///
/// A task keeps its place until it leaves, however often it is woken: waking the first one is a
/// baton, which it passes on when it leaves.
#[derive(Debug, Default)]
pub(super) struct WaitList {
    waiting: VecDeque<(Ticket, Waker)>,
    issued: u64,
}

/// A place in one [`WaitList`]. Later arrivals compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

impl WaitList {
    /// Takes a place at the end, or refreshes the waker of the place already held; gives the waker
    /// that it replaces.
    pub(super) fn enrol(&mut self, ticket: &mut Option<Ticket>, waker: &Waker) -> Option<Waker> {
        if let Some(index) = ticket.and_then(|ticket| self.position(ticket)) {
            let held = &mut self.waiting[index].1;
            return (!held.will_wake(waker)).then(|| std::mem::replace(held, waker.clone()));
        }
        let new = Ticket(self.issued);
        self.issued += 1;
        self.waiting.push_back((new, waker.clone()));
        *ticket = Some(new);
        None
    }

    /// Gives up a place, and its waker.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waker> {
        let index = self.position(ticket)?;
        self.waiting.remove(index).map(|(_, waker)| waker)
    }

    /// Whether nobody waits in front of the holder of `ticket` (of a newcomer, for `None`).
    pub(super) fn is_first(&self, ticket: Option<Ticket>) -> bool {
        self.waiting.front().is_none_or(|(first, _)| Some(*first) == ticket)
    }

    fn position(&self, ticket: Ticket) -> Option<usize> {
        // Places are given out in ascending order and keep their order, so the list is sorted.
        self.waiting.binary_search_by_key(&ticket, |(held, _)| *held).ok()
    }
}

/// What a change of the state leaves to be done after the lock is released: waking, and dropping
/// wakers and items, may run foreign code, which may come back to this very queue.
#[derive(Debug)]
pub(super) struct Aftermath<T> {
    first: Option<Waker>,
    others: Vec<Waker>,
    retired: Option<Waker>,
    released: Vec<T>,
}

impl<T> Aftermath<T> {
    pub(super) fn new() -> Self {
        Self { first: None, others: Vec::new(), retired: None, released: Vec::new() }
    }

    /// Wakes the first waiter of `list`.
    pub(super) fn wake_first(&mut self, list: &WaitList) {
        if let Some((_, waker)) = list.waiting.front() {
            self.wake(waker);
        }
    }

    /// Wakes every waiter of `list`.
    pub(super) fn wake_all(&mut self, list: &WaitList) {
        for (_, waker) in &list.waiting {
            self.wake(waker);
        }
    }

    /// Drops what `released` holds once the lock is gone.
    pub(super) fn release(&mut self, released: impl IntoIterator<Item = T>) {
        self.released.extend(released);
    }

    /// Drops a waker that wakes nobody any more, once the lock is gone. There is at most one.
    pub(super) fn retire(&mut self, waker: Option<Waker>) {
        debug_assert!(self.retired.is_none());
        self.retired = waker;
    }

    pub(super) fn run(self) {
        drop((self.released, self.retired));
        self.first.into_iter().chain(self.others).for_each(Waker::wake);
    }

    fn wake(&mut self, waker: &Waker) {
        match &self.first {
            None => self.first = Some(waker.clone()),
            // One task often waits for two things at once.
            Some(first) if first.will_wake(waker) => {}
            Some(_) => self.others.push(waker.clone()),
        }
    }
}

//! Communicators: who is in them, whether they are ready, and what they are at.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use kvpipe_fake_common::lock;

use crate::bootstrap::{Meeting, answer, listen};
use crate::codes::{
    Code, IN_PROGRESS, INTERNAL_ERROR, INVALID_ARGUMENT, Result, SUCCESS, SYSTEM_ERROR, failed, misuse,
};
use crate::link::Links;
use crate::switches::{Switches, switches_of};

pub(crate) struct Comm {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) nonce: u64,
    pub(crate) is_blocking: bool,
    pub(crate) switches: Arc<Switches>,
    state: Mutex<State>,
    changed: Condvar,
    /// The thread that stands in for the null stream, once it was used.
    null_stream: Mutex<Option<mpsc::Sender<Work>>>,
}

pub(crate) type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct State {
    /// What the last call has come to.
    result: Code,
    /// What is wrong for good; only an abort follows.
    error: Option<Code>,
    /// How many polls are still answered by "in progress".
    polls_left: u32,
    has_job: bool,
    is_finalized: bool,
    /// Aborted or destroyed.
    pub(crate) is_over: bool,
    /// Launches run one after the other, in the order in which they were enqueued, whatever their streams.
    next_ticket: u64,
    finished: u64,
    /// How many of the further streams of a launch have come to it.
    arrived: BTreeMap<u64, usize>,
    operations: u64,
    port: u16,
    pub(crate) ports: Vec<u16>,
    pub(crate) links: Links,
    /// Registered buffers and windows.
    pub(crate) registered: BTreeMap<usize, usize>,
}

/// Handles are numbers that nobody dereferences, and none comes back.
static COMMS: Mutex<(usize, BTreeMap<usize, Arc<Comm>>)> = Mutex::new((0, BTreeMap::new()));

const FIRST_HANDLE: usize = 0x7d00_0000_0000;

pub(crate) fn find(handle: usize) -> Result<Arc<Comm>> {
    if handle == 0 {
        return Err(failed(INVALID_ARGUMENT, "comm argument is NULL"));
    }
    let found = lock(&COMMS).1.get(&handle).map(Arc::clone);
    found
        .ok_or_else(|| misuse(INVALID_ARGUMENT, format_args!("{handle:#x} is no communicator that is alive")))
}

pub(crate) fn forget(handle: usize) {
    lock(&COMMS).1.remove(&handle);
}

/// Communicators that are alive, and what is registered with them.
pub(crate) fn count() -> (u64, u64) {
    let comms = &lock(&COMMS).1;
    let registered: usize = comms.values().map(|comm| comm.state().registered.len()).sum();
    (comms.len() as u64, registered as u64)
}

impl Comm {
    /// Starts to form one; in the background, if it is not to block, or not alone. Its handle too.
    pub(crate) fn create(
        (rank, size): (usize, usize),
        meeting: Meeting,
        is_blocking: bool,
        in_background: bool,
    ) -> (usize, Arc<Self>, Code) {
        let switches = switches_of(rank);
        let comm = Arc::new(Self {
            rank,
            size,
            nonce: meeting.nonce,
            is_blocking,
            switches,
            state: Mutex::default(),
            changed: Condvar::new(),
            null_stream: Mutex::default(),
        });
        let handle = {
            let mut comms = lock(&COMMS);
            let handle = FIRST_HANDLE + 64 * comms.0;
            comms.0 += 1;
            comms.1.insert(handle, Arc::clone(&comm));
            handle
        };
        let in_background = in_background || !(is_blocking || comm.switches.init_blocks);
        let code = comm.start(in_background, move |comm| comm.meet(meeting), |_| ());
        (handle, comm, code)
    }

    fn meet(self: &Arc<Self>, meeting: Meeting) -> Result {
        if self.switches.silent {
            self.wait_for_end();
            return Err(INTERNAL_ERROR);
        }
        let (listener, port) =
            listen().map_err(|error| failed(SYSTEM_ERROR, format_args!("no listener: {error}")))?;
        self.state().port = port;
        let comm = Arc::clone(self);
        thread::spawn(move || comm.accept_all(&listener));
        let stream = self.adopt(meeting.check_in(self.rank, self.size, port)?)?;
        let ports = answer(&stream, self.size)?;
        self.state().ports = ports;
        Ok(())
    }

    fn accept_all(&self, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            if self.state().is_over {
                return;
            }
            self.accept(stream);
        }
    }

    /// Prepares and commits a call; both at once, or in the background, which takes at least as many polls
    /// as the switch says. What comes of it is what [`Comm::poll`] gives.
    pub(crate) fn start(
        self: &Arc<Self>,
        in_background: bool,
        prepare: impl FnOnce(&Arc<Self>) -> Result + Send + 'static,
        commit: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> Code {
        let polls = if self.is_blocking { 0 } else { self.switches.in_progress };
        if !in_background && polls == 0 {
            let result = prepare(self);
            if result.is_ok() {
                commit(self);
            }
            return result.err().unwrap_or(SUCCESS);
        }
        {
            let mut state = self.state();
            state.result = IN_PROGRESS;
            state.polls_left = polls;
            state.has_job = true;
        }
        let comm = Arc::clone(self);
        thread::spawn(move || {
            let result = prepare(&comm);
            let state = comm.wait_while(comm.state(), |state| state.polls_left > 0 && !state.is_over);
            let is_over = state.is_over;
            drop(state);
            if result.is_ok() && !is_over {
                commit(&comm);
            }
            let mut state = comm.state();
            state.result = result.err().unwrap_or(SUCCESS);
            state.has_job = false;
            comm.changed.notify_all();
        });
        IN_PROGRESS
    }

    /// What `ncclCommGetAsyncError` gives.
    pub(crate) fn poll(&self) -> Code {
        let mut state = self.state();
        if state.polls_left > 0 {
            state.polls_left -= 1;
            self.changed.notify_all();
            return state.error.unwrap_or(IN_PROGRESS);
        }
        state.error.unwrap_or(state.result)
    }

    /// The same, without counting as a poll.
    pub(crate) fn peek(&self) -> Code {
        let state = self.state();
        state.error.unwrap_or(state.result)
    }

    /// Waits for what is done in the background.
    pub(crate) fn join(&self) -> Code {
        let state = self.wait_while(self.state(), |state| state.has_job);
        state.error.unwrap_or(state.result)
    }

    /// A call that follows before the last one has ended is refused, as NCCL does it.
    pub(crate) fn ensure_ready(&self) -> Result {
        match self.peek() {
            SUCCESS => Ok(()),
            IN_PROGRESS => Err(misuse(INVALID_ARGUMENT, "a call before the previous one has ended")),
            code => Err(code),
        }
    }

    /// The communicator is good for nothing but an abort from now on.
    pub(crate) fn fail(&self, code: Code) {
        let mut state = self.state();
        state.error.get_or_insert(code);
        self.changed.notify_all();
    }

    /// Starts to finish what is under way.
    pub(crate) fn finalize(self: &Arc<Self>) -> Result<Code> {
        self.ensure_ready()?;
        let is_idle = {
            let mut state = self.state();
            if std::mem::replace(&mut state.is_finalized, true) {
                drop(state);
                return Err(misuse(INVALID_ARGUMENT, "a communicator is finalized twice"));
            }
            state.finished == state.next_ticket
        };
        let in_background = !(self.is_blocking || is_idle);
        Ok(self.start(in_background, |comm| comm.flush(), |_| ()))
    }

    pub(crate) fn flush(&self) -> Result {
        let state =
            self.wait_while(self.state(), |state| state.finished < state.next_ticket && !state.is_over);
        if state.is_over { Err(INTERNAL_ERROR) } else { Ok(()) }
    }

    /// Ends it: whoever is stuck wakes, every piece of work on a stream returns.
    pub(crate) fn end(&self, is_abort: bool) {
        let mut state = self.state();
        state.is_over = true;
        state.links.close(is_abort);
        let port = state.port;
        self.changed.notify_all();
        drop(state);
        if port != 0 {
            // Wakes the listener's thread; if that has gone, so much the better.
            let _ = crate::bootstrap::connect(port);
        }
        drop(self.wait_while(self.state(), |state| state.has_job));
    }

    pub(crate) fn is_finalized(&self) -> bool {
        self.state().is_finalized
    }

    /// A place in the order of launches.
    pub(crate) fn take_ticket(&self) -> u64 {
        let mut state = self.state();
        state.next_ticket += 1;
        state.next_ticket - 1
    }

    /// Until all before it are finished and its further streams have come to it. Not success: it is over.
    pub(crate) fn wait_for_turn(&self, ticket: u64, further_streams: usize) -> Result {
        let state = self.wait_while(self.state(), |state| {
            let is_next = state.finished == ticket;
            let all_arrived = state.arrived.get(&ticket).copied().unwrap_or(0) == further_streams;
            !(state.is_over || is_next && all_arrived)
        });
        if state.is_over {
            return Err(INTERNAL_ERROR);
        }
        let broken = self.switches.async_error.filter(|(operations, _)| state.operations >= *operations);
        drop(state);
        broken.map_or(Ok(()), |(_, code)| Err(failed(code, "an error, as the switch says")))
    }

    /// A further stream has come to a launch, and waits for its end.
    pub(crate) fn arrive(&self, ticket: u64) {
        let mut state = self.state();
        *state.arrived.entry(ticket).or_default() += 1;
        self.changed.notify_all();
        drop(self.wait_while(state, |state| state.finished <= ticket));
    }

    pub(crate) fn finish_turn(&self, operations: usize) {
        let mut state = self.state();
        state.finished += 1;
        state.operations += operations as u64;
        self.changed.notify_all();
    }

    pub(crate) fn wait_for_end(&self) {
        drop(self.wait_while(self.state(), |state| !state.is_over));
    }

    /// Work for the null stream.
    pub(crate) fn enqueue(&self, work: Work) {
        let mut stream = lock(&self.null_stream);
        let sender = stream.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel::<Work>();
            thread::spawn(move || receiver.into_iter().for_each(|work| work()));
            sender
        });
        // The thread is there as long as the sender.
        let _ = sender.send(work);
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, condition).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changed(&self) {
        self.changed.notify_all();
    }
}

//! Groups, and how operations come onto their streams.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::ptr::with_exposed_provenance_mut;
use std::sync::{Arc, Mutex};
use std::thread;

use kvpipe_fake_common::lock;

use crate::codes::{Code, IN_PROGRESS, INVALID_ARGUMENT, INVALID_USAGE, Result, SUCCESS, failed, misuse};
use crate::comm::Comm;
use crate::transfer::{Function, Operation, StreamHandle};

#[derive(Default)]
struct Group {
    depth: usize,
    error: Code,
    /// Communicators that are being made.
    forming: Vec<Arc<Comm>>,
    operations: Vec<(Arc<Comm>, Vec<Operation>)>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

pub(crate) fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

pub(crate) fn is_open() -> bool {
    GROUP.with_borrow(|group| group.depth > 0)
}

/// A call has failed; the end of the group will say so.
pub(crate) fn note_error(code: Code) {
    GROUP.with_borrow_mut(|group| {
        if group.depth > 0 && group.error == SUCCESS {
            group.error = code;
        }
    });
}

pub(crate) fn note_forming(comm: Arc<Comm>) {
    GROUP.with_borrow_mut(|group| group.forming.push(comm));
}

/// Runs the operation now, or at the end of the group.
pub(crate) fn append(comm: &Arc<Comm>, operation: Operation) -> Code {
    if !is_open() {
        return launch_all(vec![(Arc::clone(comm), vec![operation])]);
    }
    GROUP.with_borrow_mut(|group| {
        match group.operations.iter_mut().find(|(other, _)| Arc::ptr_eq(other, comm)) {
            Some((_, operations)) => operations.push(operation),
            None => group.operations.push((Arc::clone(comm), vec![operation])),
        }
    });
    SUCCESS
}

pub(crate) fn end() -> Code {
    let group = GROUP.with_borrow_mut(|group| match group.depth {
        0 => Err(misuse(INVALID_USAGE, "ncclGroupEnd: not in a group")),
        1 => Ok(Some(std::mem::take(group))),
        _ => {
            group.depth -= 1;
            Ok(None)
        }
    });
    match group {
        Err(code) => code,
        Ok(None) => SUCCESS,
        Ok(Some(group)) if group.error != SUCCESS => group.error,
        Ok(Some(group)) => {
            let formed =
                group.forming.iter().map(|comm| if comm.is_blocking { comm.join() } else { comm.peek() });
            let formed = formed.fold(SUCCESS, first_of);
            first_of(formed, launch_all(group.operations))
        }
    }
}

/// Errors before "in progress" before success.
fn first_of(left: Code, right: Code) -> Code {
    match (left, right) {
        (SUCCESS, code) => code,
        (IN_PROGRESS, code) if code != SUCCESS => code,
        _ => left,
    }
}

fn launch_all(groups: Vec<(Arc<Comm>, Vec<Operation>)>) -> Code {
    let mixed = groups.iter().any(|(comm, _)| comm.is_blocking != groups[0].0.is_blocking);
    if mixed {
        return misuse(INVALID_ARGUMENT, "blocking and nonblocking communicators in one group");
    }
    let checked: Result<Vec<()>> =
        groups.iter().map(|(comm, operations)| check_self(comm, operations)).collect();
    if let Err(code) = checked {
        return code;
    }
    match <[_; 1]>::try_from(groups) {
        Ok([(comm, operations)]) => launch(&comm, operations),
        // Each waits for its peers, which may be in the same group.
        Err(groups) => thread::scope(|scope| {
            let launches: Vec<_> = groups
                .into_iter()
                .map(|(comm, operations)| scope.spawn(move || launch(&comm, operations)))
                .collect();
            let codes = launches.into_iter().map(|launch| launch.join().unwrap_or(INVALID_USAGE));
            codes.fold(SUCCESS, first_of)
        }),
    }
}

/// What a rank sends to itself, it receives in the same group.
fn check_self(comm: &Comm, operations: &[Operation]) -> Result {
    let of = |function: Function| {
        let to_self =
            move |operation: &&Operation| operation.function == function && operation.peer == comm.rank;
        operations.iter().filter(to_self).map(|operation| operation.count * operation.dtype.bytes())
    };
    if of(Function::Send).eq(of(Function::Recv)) {
        Ok(())
    } else {
        Err(misuse(INVALID_USAGE, "trying to send to self without a matching recv, or the reverse"))
    }
}

fn launch(comm: &Arc<Comm>, operations: Vec<Operation>) -> Code {
    // A collective operation on nothing does not wait for anybody.
    let operations: Vec<Operation> = operations
        .into_iter()
        .filter(|operation| operation.count > 0 || !operation.is_collective())
        .collect();
    if operations.is_empty() {
        return SUCCESS;
    }
    let lanes: BTreeSet<_> =
        operations.iter().flat_map(|operation| operation.lanes(comm.rank, comm.size)).collect();
    let in_background = !comm.is_blocking && !comm.is_connected(&lanes);
    let prepare = move |comm: &Arc<Comm>| comm.connect(&lanes);
    comm.start(in_background, prepare, move |comm| enqueue(comm, operations))
}

/// Operations of one communicator on their way through one stream or several.
struct Launch {
    comm: Arc<Comm>,
    ticket: u64,
    further_streams: usize,
    /// Taken when they run, so that what they hold is free as soon as they have ended.
    operations: Mutex<Vec<Operation>>,
}

fn enqueue(comm: &Arc<Comm>, operations: Vec<Operation>) {
    let streams: BTreeSet<usize> = operations.iter().map(|operation| operation.stream).collect();
    let launch = Arc::new(Launch {
        comm: Arc::clone(comm),
        ticket: comm.take_ticket(),
        further_streams: streams.len() - 1,
        operations: Mutex::new(operations),
    });
    for (index, stream) in streams.into_iter().enumerate() {
        let launch = Arc::clone(&launch);
        if stream == 0 {
            comm.enqueue(Box::new(move || launch.run(index)));
            continue;
        }
        let stream: *mut c_void = with_exposed_provenance_mut(stream);
        let data = Box::into_raw(Box::new((launch, index)));
        // SAFETY: a stream of kvpipe-fake-cuda, whose handles are never freed.
        unsafe { ((*stream.cast::<StreamHandle>()).enqueue)(stream, run, data.cast()) };
    }
}

unsafe extern "C" fn run(data: *mut c_void) {
    // SAFETY: the box from above, given once.
    let (launch, index) = *unsafe { Box::from_raw(data.cast::<(Arc<Launch>, usize)>()) };
    launch.run(index);
}

impl Launch {
    /// The first stream's piece of work does it all; the others wait for it.
    fn run(&self, index: usize) {
        let comm = &self.comm;
        if index > 0 {
            return comm.arrive(self.ticket);
        }
        let operations = std::mem::take(&mut *lock(&self.operations));
        let turn = comm.wait_for_turn(self.ticket, self.further_streams);
        if let Err(code) = turn.and_then(|()| comm.transfer(&operations)) {
            // As a kernel whose peer is gone: it stays until the communicator is aborted.
            comm.fail(code);
            comm.wait_for_end();
        }
        let count = operations.len();
        drop(operations);
        comm.finish_turn(count);
    }
}

/// An operation that is refused fails its group, and, as in NCCL, a nonblocking communicator for good.
pub(crate) fn refuse(comm: &Comm, code: Code) -> Code {
    note_error(code);
    if !comm.is_blocking {
        comm.fail(code);
    }
    code
}

/// An argument out of its range.
pub(crate) fn check_rank(comm: &Comm, what: &str, rank: i32) -> Result<usize> {
    let valid = usize::try_from(rank).ok().filter(|rank| *rank < comm.size);
    valid.ok_or_else(|| failed(INVALID_ARGUMENT, format_args!("{what} {rank} of {} ranks", comm.size)))
}

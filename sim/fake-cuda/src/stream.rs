//! Streams, which are threads with a queue, and events.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::without_provenance_mut;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use kvpipe_fake_common::lock;

use crate::codes::{Code, INVALID_HANDLE, INVALID_VALUE, NOT_READY, Result};
use crate::driver::{current_device, initialized, write};
use crate::memory::in_use;
use crate::switches::{call, misuse, switches};

/// A piece of work: a function and what it is called with.
pub type WorkFn = unsafe extern "C" fn(*mut c_void);

/// What the handle of a stream points to. It stays after the stream was destroyed, so that one that is
/// used too late is a misuse and no crash.
#[repr(C)]
pub struct StreamHandle {
    /// Puts work on the stream.
    pub enqueue: unsafe extern "C" fn(stream: *mut c_void, work: WorkFn, data: *mut c_void),
    /// Work that is to be enqueued uses memory of a device (`begin` is not 0), or has used it. Not 0: this
    /// is no memory of a device.
    pub in_use: extern "C" fn(address: u64, bytes: usize, begin: c_int) -> c_uint,
    stream: Arc<Stream>,
}

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    /// How much work was ever put into the queue, and how much of it is done.
    enqueued: u64,
    finished: u64,
    is_destroyed: bool,
}

pub(crate) struct Stream {
    device: usize,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    alive: BTreeMap<usize, &'static StreamHandle>,
    /// Stream 0 of each device, once it was used.
    default: BTreeMap<usize, &'static StreamHandle>,
    /// Destroyed, but perhaps not done.
    destroyed: Vec<Arc<Stream>>,
    events: BTreeMap<usize, Arc<Event>>,
    next_event: usize,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    alive: BTreeMap::new(),
    default: BTreeMap::new(),
    destroyed: Vec::new(),
    events: BTreeMap::new(),
    next_event: 0,
});

/// Streams and events that are alive.
pub(crate) fn count() -> (u64, u64) {
    let table = lock(&TABLE);
    (table.alive.len() as u64, table.events.len() as u64)
}

pub(crate) fn synchronize_device(device: usize) {
    let streams: Vec<_> = {
        let mut table = lock(&TABLE);
        table.destroyed.retain(|stream| !stream.is_idle());
        let handles = table.alive.values().chain(table.default.values());
        let all = handles.map(|handle| &handle.stream).chain(&table.destroyed);
        all.filter(|stream| stream.device == device).map(Arc::clone).collect()
    };
    streams.iter().for_each(|stream| stream.synchronize());
}

impl Stream {
    fn start(device: usize) -> &'static StreamHandle {
        let stream = Arc::new(Self { device, queue: Mutex::default(), changed: Condvar::new() });
        let worker = Arc::clone(&stream);
        thread::spawn(move || worker.work());
        Box::leak(Box::new(StreamHandle { enqueue, in_use, stream }))
    }

    /// The stream of a handle; of null and the handles 1 and 2, the current device's own.
    pub(crate) fn alive(handle: *mut c_void) -> Result<Arc<Self>> {
        initialized()?;
        let mut table = lock(&TABLE);
        let found = match handle.addr() {
            0..=2 => {
                let device = current_device("the default stream")?;
                Some(*table.default.entry(device).or_insert_with(|| Self::start(device)))
            }
            address => table.alive.get(&address).copied(),
        };
        let found = found.map(|handle| Arc::clone(&handle.stream));
        found.ok_or_else(|| misuse(INVALID_HANDLE, format_args!("{handle:?} is no stream that is alive")))
    }

    pub(crate) fn enqueue(&self, work: Work) {
        let mut queue = lock(&self.queue);
        if queue.is_destroyed {
            misuse(INVALID_HANDLE, "work for a stream that was destroyed");
            thread::spawn(work);
            return;
        }
        queue.work.push_back(work);
        queue.enqueued += 1;
        self.changed.notify_all();
    }

    /// Waits until all that is enqueued now was done.
    pub(crate) fn synchronize(&self) {
        let mut queue = lock(&self.queue);
        let before = queue.enqueued;
        while queue.finished < before {
            queue = self.wait(queue);
        }
    }

    fn is_idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.finished == queue.enqueued
    }

    fn work(&self) {
        let mut queue = lock(&self.queue);
        loop {
            match queue.work.pop_front() {
                Some(work) => {
                    drop(queue);
                    let slow = switches().slow;
                    if !slow.is_zero() {
                        thread::sleep(slow);
                    }
                    work();
                    queue = lock(&self.queue);
                    queue.finished += 1;
                    self.changed.notify_all();
                }
                None if queue.is_destroyed => return,
                None => queue = self.wait(queue),
            }
        }
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }
}

unsafe extern "C" fn enqueue(stream: *mut c_void, work: WorkFn, data: *mut c_void) {
    // SAFETY: called through a handle, which is never freed.
    let handle = unsafe { &*stream.cast::<StreamHandle>() };
    let data = data.expose_provenance();
    handle.stream.enqueue(Box::new(move || {
        // SAFETY: the function and its data are of who enqueued them.
        unsafe { work(std::ptr::with_exposed_provenance_mut(data)) }
    }));
}

/// How often it was recorded, and which of these records its stream has come to.
#[derive(Default)]
struct Event {
    records: Mutex<Records>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy)]
struct Records {
    recorded: u64,
    reached: u64,
}

/// Handles of events are numbers that nobody dereferences.
const FIRST_EVENT: usize = 0x7e00_0000_0000;

impl Event {
    fn alive(handle: *mut c_void) -> Result<Arc<Self>> {
        initialized()?;
        let event = lock(&TABLE).events.get(&handle.addr()).map(Arc::clone);
        event.ok_or_else(|| misuse(INVALID_HANDLE, format_args!("{handle:?} is no event that is alive")))
    }

    fn record(self: &Arc<Self>, stream: &Stream) {
        let number = {
            let mut records = lock(&self.records);
            records.recorded += 1;
            records.recorded
        };
        let event = Arc::clone(self);
        stream.enqueue(Box::new(move || {
            let mut records = lock(&event.records);
            records.reached = records.reached.max(number);
            event.changed.notify_all();
        }));
    }

    fn records(&self) -> Records {
        *lock(&self.records)
    }

    fn wait_for(&self, number: u64) {
        let mut records = lock(&self.records);
        while records.reached < number {
            records = self.changed.wait(records).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Creates a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(into: *mut *mut c_void, flags: c_uint) -> Code {
    call("cuStreamCreate", || {
        let device = current_device("cuStreamCreate")?;
        // 1: does not wait for stream 0, which here none does.
        if into.is_null() || flags > 1 {
            return Err(INVALID_VALUE);
        }
        let handle = Stream::start(device);
        let pointer = std::ptr::from_ref(handle).cast_mut().cast::<c_void>();
        lock(&TABLE).alive.insert(pointer.addr(), handle);
        // SAFETY: the caller's pointer.
        unsafe { write(into, pointer) }
    })
}

/// [`cuStreamCreate`]; the priority is nothing here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    into: *mut *mut c_void,
    flags: c_uint,
    _priority: c_int,
) -> Code {
    // SAFETY: the same contract.
    unsafe { cuStreamCreate(into, flags) }
}

/// Destroys a stream; what is on it is done all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(handle: *mut c_void) -> Code {
    call("cuStreamDestroy_v2", || {
        if handle.addr() <= 2 {
            return Err(misuse(INVALID_HANDLE, "the default stream is destroyed"));
        }
        let stream = Stream::alive(handle)?;
        let mut table = lock(&TABLE);
        table.alive.remove(&handle.addr());
        table.destroyed.retain(|stream| !stream.is_idle());
        table.destroyed.push(Arc::clone(&stream));
        drop(table);
        lock(&stream.queue).is_destroyed = true;
        stream.changed.notify_all();
        Ok(())
    })
}

/// Waits for all that is on the stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> Code {
    call("cuStreamSynchronize", || {
        Stream::alive(stream)?.synchronize();
        Ok(())
    })
}

/// Whether all that is on the stream is done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: *mut c_void) -> Code {
    call("cuStreamQuery", || {
        let stream = Stream::alive(stream)?;
        if stream.is_idle() { Ok(()) } else { Err(NOT_READY) }
    })
}

/// What comes later on the stream waits for the event's last record; for nothing, if it has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, flags: c_uint) -> Code {
    call("cuStreamWaitEvent", || {
        if flags > 1 {
            return Err(INVALID_VALUE);
        }
        let event = Event::alive(event)?;
        let number = event.records().recorded;
        Stream::alive(stream)?.enqueue(Box::new(move || event.wait_for(number)));
        Ok(())
    })
}

/// Calls a function in the order of the stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: *mut c_void,
    work: Option<WorkFn>,
    data: *mut c_void,
) -> Code {
    call("cuLaunchHostFunc", || {
        let work = work.ok_or(INVALID_VALUE)?;
        let data = data.expose_provenance();
        Stream::alive(stream)?.enqueue(Box::new(move || {
            // SAFETY: the function and its data are the caller's.
            unsafe { work(std::ptr::with_exposed_provenance_mut(data)) }
        }));
        Ok(())
    })
}

/// Creates an event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(into: *mut *mut c_void, flags: c_uint) -> Code {
    call("cuEventCreate", || {
        current_device("cuEventCreate")?;
        // Blocking synchronisation, no timing; not between processes.
        if into.is_null() || flags > 3 {
            return Err(INVALID_VALUE);
        }
        let mut table = lock(&TABLE);
        let handle = FIRST_EVENT + 16 * table.next_event;
        table.next_event += 1;
        table.events.insert(handle, Arc::default());
        // SAFETY: the caller's pointer.
        unsafe { write(into, without_provenance_mut(handle)) }
    })
}

/// Destroys an event, whether its stream has come to it or not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(handle: *mut c_void) -> Code {
    call("cuEventDestroy_v2", || {
        Event::alive(handle)?;
        lock(&TABLE).events.remove(&handle.addr());
        Ok(())
    })
}

/// The event stands for all that is on the stream now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> Code {
    call("cuEventRecord", || {
        Event::alive(event)?.record(&*Stream::alive(stream)?);
        Ok(())
    })
}

/// Whether the stream has come to the event's last record, or it has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: *mut c_void) -> Code {
    call("cuEventQuery", || {
        let records = Event::alive(event)?.records();
        if records.reached >= records.recorded { Ok(()) } else { Err(NOT_READY) }
    })
}

/// Waits until it has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: *mut c_void) -> Code {
    call("cuEventSynchronize", || {
        let event = Event::alive(event)?;
        event.wait_for(event.records().recorded);
        Ok(())
    })
}

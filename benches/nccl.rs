//! What a pipe adds to an item that NCCL carries, in microseconds: an edge of the nccl transport beside bare
//! `ncclSend` and `ncclRecv`, both on the fakes of NCCL and of CUDA.
//!
//! The fakes copy through a loopback connection, so how long an item takes here says nothing of a GPU. What
//! the pipe adds is its own: two queues, an announcement, room and memory for it, the turn of each call on
//! the communicator's thread, events that are looked at, an acknowledgement. The bare calls have none of
//! that, and no event either: both ends enqueue all of their items at once, into 16 buffers in turn.
//!
//! Both ends are threads of this process. Ways are measured in turns, and a figure is the median of the
//! turns, with the least and the greatest behind it.

#![allow(missing_docs, reason = "a benchmark")]
#![allow(unsafe_code, reason = "the bare way is in C")]

use std::collections::VecDeque;
use std::ffi::c_int;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use kvpipe::device::{Device, DeviceBufferMut, Stream};
use kvpipe::nccl::Library;
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::nccl::{NcclConfig, NcclIncoming, NcclOutgoing};
use kvpipe::{Pipe, PipeConfig, Tensor};
use kvpipe_fake_cuda::stream::cuStreamSynchronize;
use kvpipe_fake_nccl::UniqueId;
use kvpipe_fake_nccl::api::{RawComm, ncclCommInitRank, ncclGetUniqueId, ncclRecv, ncclSend};
use kvpipe_sim::device::HostDevice;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

/// Sizes of items in bytes; how many are moved in a row, and how many one by one, in a turn.
const SIZES: [(usize, u64, u64); 5] =
    [(64, 4000, 200), (4 << 10, 4000, 200), (64 << 10, 2000, 200), (1 << 20, 200, 50), (4 << 20, 60, 20)];

const TURNS: usize = 9;

/// Buffers that are received into in turn, and items that the pipe's receiver keeps.
const TARGETS: usize = 16;

/// Nobody is served while it is the other way's turn, so nobody must be missed.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// ncclUint8.
const BYTES: u32 = 1;

static DEVICE: LazyLock<Arc<dyn Device>> = LazyLock::new(|| {
    kvpipe_fake_cuda::configure("poison=off");
    HostDevice::open(0).expect("the fake has a device")
});

/// A way to move items to another thread.
trait Way {
    /// The time from the first item's sending until the other thread has all.
    fn time(&mut self, items: u64) -> Duration;
}

/// A rank that calls NCCL and nothing else.
struct BareEnd {
    comm: RawComm,
    stream: Stream,
    size: usize,
}

impl BareEnd {
    fn meet(rank: c_int, id: UniqueId, size: usize) -> Self {
        DEVICE.make_current().expect("it is open");
        let mut comm = null_mut();
        // SAFETY: a place for a handle.
        succeeded(unsafe { ncclCommInitRank(&raw mut comm, 2, id, rank) });
        Self { comm, stream: Stream::new(&DEVICE).expect("a stream"), size }
    }

    fn send(&self, source: &Tensor, items: u64) {
        let address = source.device_buffer().expect("it is on the device").address() as usize;
        for _ in 0..items {
            let (from, stream) = (with_exposed_provenance_mut(address), self.stream());
            // SAFETY: so many bytes of the device, which live until the other end has all.
            succeeded(unsafe { ncclSend(from, self.size, BYTES, 1, self.comm, stream) });
        }
    }

    /// Returns when all are there.
    fn receive(&self, targets: &[DeviceBufferMut], items: u64) {
        for (_, target) in (0..items).zip(targets.iter().cycle()) {
            let (to, stream) = (with_exposed_provenance_mut(target.address() as usize), self.stream());
            // SAFETY: so many bytes of the device, which live until the stream is done, below.
            succeeded(unsafe { ncclRecv(to, self.size, BYTES, 0, self.comm, stream) });
        }
        // SAFETY: the stream is alive.
        assert_eq!(unsafe { cuStreamSynchronize(self.stream()) }, 0);
    }

    fn stream<T>(&self) -> *mut T {
        with_exposed_provenance_mut(self.stream.raw() as usize)
    }
}

fn succeeded(code: c_int) {
    assert_eq!(code, 0);
}

/// Bare calls, the other end of which are a thread's.
struct Bare {
    end: BareEnd,
    source: Tensor,
    receive: Sender<u64>,
    received: Receiver<()>,
}

impl Bare {
    fn new(source: &Tensor) -> Self {
        let mut id = UniqueId([0; 128]);
        // SAFETY: a place for an id.
        succeeded(unsafe { ncclGetUniqueId(&raw mut id) });
        let size = source.byte_len();
        let (receive, orders) = channel();
        let (answers, received) = channel();
        let receiving = move || {
            let end = BareEnd::meet(1, id, size);
            let target = |_| DeviceBufferMut::allocate(&DEVICE, size).expect("memory");
            let targets: Vec<_> = (0..TARGETS).map(target).collect();
            for items in orders {
                end.receive(&targets, items);
                answers.send(()).expect("the sender waits");
            }
        };
        thread::Builder::new().spawn(receiving).expect("a thread");
        Self { end: BareEnd::meet(0, id, size), source: source.clone(), receive, received }
    }
}

impl Way for Bare {
    fn time(&mut self, items: u64) -> Duration {
        let begin = Instant::now();
        self.receive.send(items).expect("the receiver waits");
        self.end.send(&self.source, items);
        self.received.recv().expect("the receiver receives all");
        begin.elapsed()
    }
}

/// A pipe, the other end of which is a thread's.
struct Piped {
    runtime: Runtime,
    pipe: Pipe,
    source: Tensor,
    receive: UnboundedSender<u64>,
    received: UnboundedReceiver<()>,
}

impl Piped {
    fn new(source: &Tensor) -> Self {
        let library = Library::from_functions("the fake", kvpipe_sim::nccl::functions());
        let mut config = NcclConfig::new(Arc::clone(&DEVICE), library.expect("it has all functions"));
        config.control.heartbeat = HEARTBEAT;
        let store = MemoryStore::new();
        let (receive, orders) = unbounded_channel();
        let (answers, received) = unbounded_channel();
        let (peer_config, peer_store) = (config.clone(), store.clone());
        let receiving =
            move || current_thread().block_on(receive_as_told(peer_store, peer_config, orders, answers));
        thread::Builder::new().spawn(receiving).expect("a thread");
        let runtime = current_thread();
        let outgoing = NcclOutgoing::new(TokioNet, store, ring(0), config).expect("a name that is short");
        let (pipe, driver) = Pipe::send_only(outgoing, PipeConfig::default());
        runtime.spawn(driver);
        Self { runtime, pipe, source: source.clone(), receive, received }
    }
}

impl Way for Piped {
    fn time(&mut self, items: u64) -> Duration {
        self.runtime.block_on(async {
            let begin = Instant::now();
            self.receive.send(items).expect("the receiver waits");
            for _ in 0..items {
                self.pipe.send(Some(self.source.clone())).await.expect("the peer takes everything");
            }
            self.received.recv().await.expect("the peer takes everything");
            begin.elapsed()
        })
    }
}

async fn receive_as_told(
    store: MemoryStore,
    config: NcclConfig,
    mut orders: UnboundedReceiver<u64>,
    answers: UnboundedSender<()>,
) {
    let address = "127.0.0.1:0".parse().expect("an address");
    let incoming = NcclIncoming::bind(TokioNet, &store, ring(1), address, config);
    let (pipe, driver) = Pipe::receive_only(incoming.await.expect("a free port"), PipeConfig::default());
    driver.spawn().expect("there is a runtime");
    let mut kept = VecDeque::new();
    while let Some(items) = orders.recv().await {
        for _ in 0..items {
            if kept.len() == TARGETS {
                kept.pop_front();
            }
            kept.push_back(pipe.recv().await.expect("the peer sends everything"));
        }
        answers.send(()).expect("the sender waits");
    }
}

fn ring(rank: usize) -> Ring {
    Ring::new(rank, 2).expect("two ranks")
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The middle of the turns, the least and the greatest.
fn spread(mut turns: Vec<f64>) -> String {
    turns.sort_by(f64::total_cmp);
    format!("{:.1} ({:.1} to {:.1})", turns[turns.len() / 2], turns[0], turns[turns.len() - 1])
}

/// Microseconds an item of both ways, and what the second adds, measured in turns.
fn measure(mut ways: [&mut dyn Way; 2], items: u64, at_a_time: u64) -> [String; 3] {
    let mut turns = [Vec::new(), Vec::new(), Vec::new()];
    for turn in 0..=TURNS {
        let [bare, piped] = [0, 1].map(|way| {
            let times = (0..items / at_a_time).map(|_| ways[way].time(at_a_time));
            times.sum::<Duration>().as_secs_f64() * 1e6 / items as f64
        });
        // The first makes connections and fills pools.
        if turn > 0 {
            for (turns, figure) in turns.iter_mut().zip([bare, piped, piped - bare]) {
                turns.push(figure);
            }
        }
    }
    turns.map(spread)
}

fn main() {
    println!("microseconds an item: median of {TURNS} turns (least to greatest)");
    println!("{:>9} {:>10} {:>26} {:>26} {:>26}", "item", "", "bare calls", "pipe", "the pipe adds");
    for (size, in_a_row, one_by_one) in SIZES {
        let source = Tensor::from_vec([size], vec![7_u8; size]).expect("a tensor");
        let source = current_thread().block_on(source.to_device(&DEVICE)).expect("memory");
        let (mut bare, mut piped) = (Bare::new(&source), Piped::new(&source));
        for (how, items, at_a_time) in [("in a row", in_a_row, in_a_row), ("one by one", one_by_one, 1)] {
            let [bare, piped, added] = measure([&mut bare, &mut piped], items, at_a_time);
            println!("{size:>9} {how:>10} {bare:>26} {piped:>26} {added:>26}");
        }
    }
}

//! What vLLM's pipe does wrong, and ours does not: each of these tests fails on the original behaviour
//! (`kv_transfer/kv_pipe/pynccl_pipe.py`, vLLM 0.6.6 to 0.12).
//!
//! | defect | where it is tested |
//! |---|---|
//! | one thread for both directions: two ranks that receive first wait for ever | `kvpipe_sim::conformance::plain`, `two_ends_that_both_receive_first_still_get_what_is_sent_then` |
//! | a send that was accepted may change until it is on its way | below; the payload of a [`Tensor`] can't be written to |
//! | a communicator without a check that memory is contiguous | a [`Tensor`] is contiguous by its type; nothing to test |
//! | its group's | `tests/group/defects.rs` |
//! | all others | below |

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::store::{MemoryStore, Store};
use kvpipe::tensor::BufferPool;
use kvpipe::transport::Transport;
use kvpipe::transport::store::VllmTransport;
use kvpipe::wire::{Metadata, Object, pickle};
use kvpipe::{DType, Error, Item, Pipe, PipeConfig, Result, Tensor};
use tokio::sync::watch;

use crate::support::{LONG, tensor};

const SECOND: Duration = Duration::from_secs(1);

/// vLLM's timeout of a store, and so of its receives.
const STORE_TIMEOUT: Duration = Duration::from_secs(300);

/// Two ranks' groups over one store.
type Groups = [Arc<StatelessProcessGroup<Gated>>; 2];

/// A store that takes values as its gate says.
#[derive(Clone)]
struct Gated {
    inner: MemoryStore,
    gate: watch::Sender<Gate>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// A value waits.
    Shut,
    /// A value is refused by a broken connection.
    Broken,
}

impl Gated {
    fn new() -> Self {
        Self { inner: MemoryStore::new(), gate: watch::Sender::new(Gate::Open) }
    }

    /// The next thing that vLLM's rank 0 sends to rank 1.
    async fn sends(&self, number: usize, object: Object) {
        let value = pickle::encode(&object).unwrap();
        self.inner.set(&format!("send_to/1/{number}"), value, LONG).await.unwrap();
    }

    fn groups(&self) -> Groups {
        [0, 1].map(|rank| {
            let config = GroupConfig { wire: WireMode::Vllm, ..GroupConfig::default() };
            Arc::new(StatelessProcessGroup::new(self.clone(), rank, 2, config).unwrap())
        })
    }
}

impl Store for Gated {
    delegate!(inner: get add check wait delete append compare_set multi_get multi_set num_keys list_keys
        queue_push queue_pop try_queue_pop queue_len barrier);

    async fn set(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        let gate = *self.gate.subscribe().wait_for(|gate| *gate != Gate::Shut).await.unwrap();
        match gate {
            Gate::Broken => Err(Error::io("a test", std::io::ErrorKind::ConnectionReset.into())),
            _ => self.inner.set(key, value, timeout).await,
        }
    }
}

async fn meet(groups: &Groups) -> [VllmTransport<Gated>; 2] {
    let [zero, one] = groups;
    let end = |group: &Arc<_>| VllmTransport::meet(Arc::clone(group), BufferPool::new(64 << 20));
    let (zero, one) = tokio::join!(end(zero), end(one));
    [zero.unwrap(), one.unwrap()]
}

/// A pipe of rank 0, which sends, and one of rank 1.
async fn pipes(store: &Gated, config: PipeConfig) -> [Pipe; 2] {
    meet(&store.groups()).await.map(|end| Pipe::spawn(end, config.clone()).unwrap())
}

/// Our rank 1, to which a test sends in place of a rank 0.
async fn receiver(store: &Gated) -> Pipe {
    let [_, one] = meet(&store.groups()).await;
    Pipe::spawn(one, PipeConfig::default()).unwrap()
}

fn bytes(length: usize) -> Item {
    Some(tensor(DType::UInt8, &[length]))
}

fn budget(bytes: usize) -> PipeConfig {
    PipeConfig::default().with_buffer_bytes(bytes)
}

/// Until everything else has come to a halt: there is one thread, and no time involved.
async fn halt() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

// How it sends.

/// There, room is looked for before a tensor is counted, so one more than fits is accepted.
#[tokio::test(start_paused = true)]
async fn no_tensor_overshoots_the_budget() {
    let store = Gated::new();
    let [sender, receiver] = pipes(&store, budget(1_000)).await;
    store.gate.send_replace(Gate::Shut);
    sender.try_send(bytes(600)).unwrap();
    halt().await;
    assert!(matches!(sender.try_send(bytes(401)), Err(Error::Full)), "it is on its way, and still held");
    sender.try_send(bytes(400)).unwrap();
    store.gate.send_replace(Gate::Open);
    sender.send(bytes(601)).await.unwrap();
    for expected in [600, 400, 601] {
        assert_eq!(receiver.recv().await.unwrap(), bytes(expected));
    }
    assert_eq!(sender.stats().send.unwrap().held_bytes_max, 1_000);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_room_has_an_end() {
    let store = Gated::new();
    let [sender, _receiver] = pipes(&store, budget(1_000)).await;
    store.gate.send_replace(Gate::Shut);
    sender.send(bytes(1_000)).await.unwrap();
    let late = sender.send_timeout(bytes(1), SECOND).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { after: SECOND, .. }), "{late}");
}

/// There, what failed counts as queued for ever.
#[tokio::test(start_paused = true)]
async fn a_pipe_whose_send_failed_is_not_full_for_ever() {
    let store = Gated::new();
    let [sender, _receiver] = pipes(&store, budget(1_000)).await;
    store.gate.send_replace(Gate::Broken);
    sender.send(bytes(1_000)).await.unwrap();
    let next = sender.send_timeout(bytes(1_000), LONG).await.unwrap_err();
    assert!(matches!(next, Error::Io { .. }), "{next}");
}

/// There, it is in a future that nobody has.
#[tokio::test(start_paused = true)]
async fn a_failed_send_is_told_to_every_later_call_and_its_item_is_given_back() {
    let store = Gated::new();
    let [sender, receiver] = pipes(&store, PipeConfig::default()).await;
    sender.send(bytes(1)).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap(), bytes(1));
    store.gate.send_replace(Gate::Broken);
    sender.send(bytes(2)).await.unwrap();
    let told = async { [sender.flush().await, sender.send(None).await.map(drop), sender.close().await] };
    for outcome in tokio::time::timeout(LONG, told).await.expect("nobody is told") {
        assert!(matches!(outcome, Err(Error::Io { .. })), "{outcome:?}");
    }
    let undelivered = sender.undelivered();
    assert_eq!(undelivered.iter().map(|lost| lost.sequence).collect::<Vec<_>>(), [1]);
    assert_eq!(undelivered[0].item, bytes(2));
}

#[tokio::test(start_paused = true)]
async fn a_buffer_that_serves_again_does_not_change_what_was_sent_from_it() {
    let store = Gated::new();
    let [sender, receiver] = pipes(&store, PipeConfig::default()).await;
    store.gate.send_replace(Gate::Shut);
    let pool = BufferPool::new(1 << 20);
    let send_filled = async |byte: u8| {
        let mut buffer = pool.take(8192).unwrap();
        buffer.fill(byte);
        sender.send(Some(Tensor::new(DType::UInt8, [8192], buffer.freeze()).unwrap())).await.unwrap();
        halt().await;
    };
    for byte in 1..=3 {
        send_filled(byte).await;
    }
    store.gate.send_replace(Gate::Open);
    for byte in 1..=3 {
        assert_eq!(receiver.recv().await.unwrap().unwrap().bytes().unwrap()[..], [byte; 8192]);
    }
}

/// There, each may start a thread of its own, and metadata and tensors get mixed up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn first_sends_at_the_same_time_do_not_mix() {
    const SENDERS: usize = 8;
    let [sender, receiver] = pipes(&Gated::new(), PipeConfig::default()).await;
    for number in 1..=SENDERS {
        let sender = sender.clone();
        tokio::spawn(async move { sender.send(bytes(number)).await.unwrap() });
    }
    let mut lengths = Vec::new();
    while lengths.len() < SENDERS {
        let received = receiver.recv_timeout(LONG).await.unwrap().unwrap();
        assert_eq!(Some(&received), bytes(received.byte_len()).as_ref());
        lengths.push(received.byte_len());
    }
    lengths.sort_unstable();
    assert_eq!(lengths, (1..=SENDERS).collect::<Vec<_>>());
}

// How it receives.

fn announced(dtype: DType, dims: &[usize]) -> Object {
    Object::Metadata(Metadata::of(&Some(tensor(dtype, dims))))
}

/// There, it is converted and broadcast: a scalar fills a matrix.
#[tokio::test(start_paused = true)]
async fn another_tensor_than_announced_is_a_broken_protocol() {
    for (dtype, dims) in [
        (DType::Float32, &[][..]),
        (DType::Float32, &[1]),
        (DType::Float32, &[3]),
        (DType::Float32, &[1, 2, 3]),
        (DType::Float64, &[2, 3]),
        (DType::Int32, &[2, 3]),
    ] {
        let store = Gated::new();
        let receiver = receiver(&store).await;
        store.sends(0, announced(DType::Float32, &[2, 3])).await;
        store.sends(1, Object::Tensor(tensor(dtype, dims))).await;
        let error = receiver.recv_timeout(LONG).await.unwrap_err();
        assert!(matches!(&error, Error::PeerMisbehaved { .. }), "{error}");
        assert!(error.to_string().contains("announced a tensor float32 [2, 3] and sent "), "{error}");
    }
}

/// There, whatever comes is taken for what was due.
#[tokio::test(start_paused = true)]
async fn what_is_out_of_sequence_is_a_broken_protocol() {
    let metadata = || announced(DType::Float32, &[2, 3]);
    for (sent, says) in [
        (vec![Object::Tensor(tensor(DType::Float32, &[2, 3]))], "sent a tensor where metadata was due"),
        (vec![Object::Text("barrier_x".into())], "sent a text where metadata was due"),
        (vec![metadata(), metadata()], "announced a tensor float32 [2, 3] and sent something else"),
        (vec![metadata(), Object::None], "announced a tensor float32 [2, 3] and sent something else"),
    ] {
        let store = Gated::new();
        let receiver = receiver(&store).await;
        for (number, object) in sent.into_iter().enumerate() {
            store.sends(number, object).await;
        }
        let error = receiver.recv_timeout(LONG).await.unwrap_err();
        assert!(
            matches!(&error, Error::PeerMisbehaved { violation, .. } if violation.starts_with(says)),
            "{error}"
        );
    }
}

/// There, memory for it is allocated as soon as it is announced.
#[tokio::test(start_paused = true)]
async fn a_tensor_over_the_limit_is_refused_when_it_is_announced_and_when_it_is_sent() {
    let store = Gated::new();
    let [_, one] = meet(&store.groups()).await;
    let config = PipeConfig { max_item_bytes: 23, ..PipeConfig::default() };
    let small = Pipe::spawn(one, config.clone()).unwrap();
    store.sends(0, announced(DType::Float32, &[2, 3])).await;
    let error = small.recv_timeout(LONG).await.unwrap_err();
    assert!(matches!(&error, Error::PeerMisbehaved { .. }), "{error}");
    assert!(error.to_string().contains("24 bytes is over the limit of 23 bytes"), "{error}");

    let [sender, _receiver] = pipes(&Gated::new(), config).await;
    let error = sender.send(bytes(24)).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes: 24, limit: 23 }), "{error}");
    sender.send(bytes(23)).await.unwrap();
}

/// There, the receive fails when the tensor is late, and the next one takes the tensor for metadata.
#[tokio::test(start_paused = true)]
async fn a_tensor_that_is_late_after_its_metadata_puts_nothing_out_of_place() {
    let store = Gated::new();
    let receiver = receiver(&store).await;
    let item = tensor(DType::Float32, &[2, 3]);
    store.sends(0, announced(DType::Float32, &[2, 3])).await;
    for _ in 0..2 {
        let late = receiver.recv_timeout(STORE_TIMEOUT * 2).await.unwrap_err();
        assert!(matches!(late, Error::Timeout { .. }), "{late}");
    }
    store.sends(2, Object::Metadata(Metadata::None)).await;
    store.sends(1, Object::Tensor(item.clone())).await;
    assert_eq!(receiver.recv_timeout(LONG).await.unwrap(), Some(item));
    assert_eq!(receiver.recv_timeout(LONG).await.unwrap(), None);
}

/// There, a decode instance that had nothing to do for 300 s dies.
#[tokio::test(start_paused = true)]
async fn an_idle_decode_lives_on_after_300_s() {
    let [sender, receiver] = pipes(&Gated::new(), PipeConfig::default()).await;
    let waiting = tokio::spawn(async move { receiver.recv().await });
    tokio::time::sleep(STORE_TIMEOUT * 12).await;
    assert!(!waiting.is_finished(), "there is no item");
    sender.send(bytes(3)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), bytes(3));
}

// How it closes.

/// There, it waits for the receive, and that for an item.
#[tokio::test(start_paused = true)]
async fn close_does_not_wait_for_a_receive() {
    let [_sender, receiver] = pipes(&Gated::new(), PipeConfig::default()).await;
    let pipe = receiver.clone();
    let waiting = tokio::spawn(async move { pipe.recv().await });
    halt().await;
    assert!(!waiting.is_finished(), "there is no item");
    tokio::time::timeout(SECOND, receiver.close()).await.expect("close waits").unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().to_string(), Error::Closed.to_string());
}

/// There, close lets go of neither the store nor its connection.
#[tokio::test(start_paused = true)]
async fn a_pipe_that_has_ended_holds_nothing_of_its_group() {
    let groups = Gated::new().groups();
    let [zero, _one] = meet(&groups).await;
    let (outgoing, incoming) = zero.split();
    let (pipe, driver) = Pipe::new(outgoing, incoming, PipeConfig::default());
    let driver = tokio::spawn(driver);
    pipe.send(bytes(3)).await.unwrap();
    pipe.close().await.unwrap();
    driver.await.unwrap();
    let [zero, _] = groups;
    assert!(Arc::into_inner(zero).is_some());
}

//! Running scenarios, and the items they send.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use kvpipe::transport::{Guarantees, Incoming, Outgoing, Transport};
use kvpipe::{DType, Error, Item, Pipe, PipeConfig, Result, Shape, Tensor};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::backend::Backend;

/// A scenario that takes this long hangs. It only bounds the wait for a failing test.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// Runs a scenario on a runtime with two threads.
pub(crate) fn run<B: Backend, F: Future<Output = ()>>(
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
pub(crate) fn run_without_runtime<B: Backend + Send + 'static>(
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

/// A pipe at each end, on the current runtime.
pub(crate) async fn pipes<B: Backend>(backend: &B, config: PipeConfig) -> (Pipe, Pipe) {
    let (left, right) = backend.pair().await;
    (Pipe::spawn(left, config.clone()).unwrap(), Pipe::spawn(right, config).unwrap())
}

/// A pipe that only sends and one that only receives, on the current runtime.
pub(crate) async fn edge<B: Backend>(backend: &B, config: PipeConfig) -> (Pipe, Pipe) {
    let (outgoing, incoming) = backend.edge().await;
    let (sender, _) = sending(outgoing, config.clone());
    let (receiver, _) = receiving(incoming, config);
    (sender, receiver)
}

/// A sending pipe, and its driver to be killed.
pub(crate) fn sending(outgoing: impl Outgoing, config: PipeConfig) -> (Pipe, JoinHandle<()>) {
    let (pipe, driver) = Pipe::send_only(outgoing, config);
    (pipe, tokio::spawn(driver))
}

/// A receiving pipe, and its driver to be killed.
pub(crate) fn receiving(incoming: impl Incoming, config: PipeConfig) -> (Pipe, JoinHandle<()>) {
    let (pipe, driver) = Pipe::receive_only(incoming, config);
    (pipe, tokio::spawn(driver))
}

/// Ends a driver as a dying process would: whatever it holds is dropped.
pub(crate) async fn kill(driver: JoinHandle<()>) {
    driver.abort();
    assert!(driver.await.unwrap_err().is_cancelled(), "the driver had ended before it was killed");
}

/// Room for `bytes` at each end.
pub(crate) fn room(bytes: usize) -> PipeConfig {
    PipeConfig::default().with_buffer_bytes(bytes)
}

/// A tensor with `bytes` of payload that differ from block to block and from seed to seed.
pub(crate) fn tensor(bytes: usize, seed: u64) -> Item {
    const BLOCK: usize = 4096;
    let mut block: Vec<u8> = (0..BLOCK).map(|index| (index * 31 + index / 256) as u8).collect();
    let mut payload = Vec::with_capacity(bytes);
    while payload.len() < bytes {
        let stamp = (payload.len() as u64).rotate_left(24) ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        block[..8].copy_from_slice(&stamp.to_le_bytes());
        payload.extend_from_slice(&block[..BLOCK.min(bytes - payload.len())]);
    }
    Some(Tensor::new(DType::UInt8, Shape::new(&[bytes]).unwrap(), Bytes::from(payload)).unwrap())
}

/// A tensor of `bytes` (at least 8) that begins with `number`.
pub(crate) fn numbered(number: u64, bytes: usize) -> Item {
    let mut payload = vec![0; bytes];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    Some(Tensor::from_vec([bytes], payload).unwrap())
}

/// The number of an item that [`numbered`] made.
pub(crate) fn number(item: &Item) -> u64 {
    let bytes = item.as_ref().expect("a numbered item is a tensor").bytes().unwrap();
    u64::from_le_bytes(*bytes.first_chunk().unwrap())
}

/// Takes what is left, and gives it together with the end.
pub(crate) async fn drain(pipe: &Pipe) -> (Vec<Item>, Error) {
    let mut items = Vec::new();
    loop {
        match pipe.recv().await {
            Ok(item) => items.push(item),
            Err(end) => return (items, end),
        }
    }
}

/// Takes what is left of numbered items, and gives their numbers together with the end.
pub(crate) async fn drain_numbers(pipe: &Pipe) -> (Vec<u64>, Error) {
    let (items, end) = drain(pipe).await;
    (items.iter().map(number).collect(), end)
}

/// Sends numbered items of `bytes` until both ends are full, and says how many that took. `bytes`
/// must divide the room at both ends, so that the full state is a stable one.
pub(crate) async fn saturate(sender: &Pipe, receiver: &Pipe, config: &PipeConfig, bytes: usize) -> u64 {
    let fits = ((config.budget_bytes + config.window_bytes) / bytes) as u64;
    for sequence in 0..fits {
        assert_eq!(sender.send(numbered(sequence, bytes)).await.unwrap(), sequence);
    }
    eventually(|| {
        let (sent, received) = (sender.stats().send.unwrap(), receiver.stats().receive.unwrap());
        sent.held_bytes == config.budget_bytes && received.queued_bytes == config.window_bytes
    })
    .await;
    fits
}

/// Polls a condition that must come true. It rests in between: a task that spins would stop a virtual
/// clock, and with it the limit of a scenario that hangs.
pub(crate) async fn eventually(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Polls `future` once, and drops it: the output if it was ready.
pub(crate) async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    peek(&mut future).await
}

/// Polls `future` once: the output if it was ready.
pub(crate) async fn peek<F: Future>(future: &mut Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// What a sender knows after a failure, checked for sense: every accepted item is either delivered
/// or undelivered, and what the peer may hold is in doubt. `received` is how many items the
/// receiver has seen.
pub(crate) fn assert_accounted(sender: &Pipe, accepted: u64, received: u64) {
    let delivered = sender.stats().send.unwrap().delivered_items;
    let undelivered = sender.undelivered();
    let sequences: Vec<u64> = undelivered.iter().map(|item| item.sequence).collect();
    assert_eq!(sequences, (delivered..accepted).collect::<Vec<_>>(), "delivered and undelivered add up");
    assert!(delivered <= received, "{delivered} items count as delivered, but {received} arrived");
    for item in &undelivered {
        assert_eq!(number(&item.item), item.sequence, "undelivered items are those that were sent");
        assert!(item.in_doubt || item.sequence >= received, "item {} arrived", item.sequence);
    }
}

/// The link error that tells of a peer that died, or nothing.
pub(crate) fn is_gone<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::PeerGone { .. }))
}

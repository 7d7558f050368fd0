//! Pipes at both ends of a backend, the items that scenarios send, and what they look at.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use kvpipe::transport::{Incoming, Outgoing};
use kvpipe::{Error, Item, Pipe, PipeConfig, Result, Tensor};
use tokio::task::JoinHandle;

use super::AnyBackend;

/// A pipe at each end, on the current runtime.
pub async fn pipes(backend: &AnyBackend, config: PipeConfig) -> (Pipe, Pipe) {
    let (left, right) = backend.pair().await;
    (Pipe::spawn(left, config.clone()).unwrap(), Pipe::spawn(right, config).unwrap())
}

/// A pipe that only sends and one that only receives, on the current runtime.
pub async fn edge(backend: &AnyBackend, config: PipeConfig) -> (Pipe, Pipe) {
    let (outgoing, incoming) = backend.edge().await;
    let (sender, _) = sending(outgoing, config.clone());
    let (receiver, _) = receiving(incoming, config);
    (sender, receiver)
}

/// A sending pipe, and its driver to be killed.
pub fn sending(outgoing: impl Outgoing, config: PipeConfig) -> (Pipe, JoinHandle<()>) {
    let (pipe, driver) = Pipe::send_only(outgoing, config);
    (pipe, tokio::spawn(driver))
}

/// A receiving pipe, and its driver to be killed.
pub fn receiving(incoming: impl Incoming, config: PipeConfig) -> (Pipe, JoinHandle<()>) {
    let (pipe, driver) = Pipe::receive_only(incoming, config);
    (pipe, tokio::spawn(driver))
}

/// Ends a driver as a dying process would: whatever it holds is dropped.
pub async fn kill(driver: JoinHandle<()>) {
    driver.abort();
    assert!(driver.await.unwrap_err().is_cancelled(), "the driver had ended before it was killed");
}

/// Room for `bytes` at each end.
pub fn room(bytes: usize) -> PipeConfig {
    PipeConfig::default().with_buffer_bytes(bytes)
}

/// A tensor with `bytes` of payload that differ from block to block and from seed to seed.
pub fn tensor(bytes: usize, seed: u64) -> Item {
    const BLOCK: usize = 4096;
    let mut block: Vec<u8> = (0..BLOCK).map(|index| (index * 31 + index / 256) as u8).collect();
    let mut payload = Vec::with_capacity(bytes);
    while payload.len() < bytes {
        let stamp = (payload.len() as u64).rotate_left(24) ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        block[..8].copy_from_slice(&stamp.to_le_bytes());
        payload.extend_from_slice(&block[..BLOCK.min(bytes - payload.len())]);
    }
    Some(Tensor::from_vec([bytes], payload).unwrap())
}

/// A tensor of `bytes` (at least 8) that begins with `number`.
pub fn numbered(number: u64, bytes: usize) -> Item {
    let mut payload = vec![0; bytes];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    Some(Tensor::from_vec([bytes], payload).unwrap())
}

/// The number of an item that [`numbered`] made.
pub fn number(item: &Item) -> u64 {
    let bytes = item.as_ref().expect("a numbered item is a tensor").bytes().unwrap();
    u64::from_le_bytes(*bytes.first_chunk().unwrap())
}

/// Takes what is left, and gives it together with the end.
pub async fn drain(pipe: &Pipe) -> (Vec<Item>, Error) {
    let mut items = Vec::new();
    loop {
        match pipe.recv().await {
            Ok(item) => items.push(item),
            Err(end) => return (items, end),
        }
    }
}

/// Takes what is left of numbered items, and gives their numbers together with the end.
pub async fn drain_numbers(pipe: &Pipe) -> (Vec<u64>, Error) {
    let (items, end) = drain(pipe).await;
    (items.iter().map(number).collect(), end)
}

/// Sends numbered items of `bytes` until both ends are full, and says how many that took. `bytes`
/// must divide the room at both ends, so that the full state is a stable one.
pub async fn saturate(sender: &Pipe, receiver: &Pipe, config: &PipeConfig, bytes: usize) -> u64 {
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
pub async fn eventually(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Lets others go on, between two polls of something that may come true at any of them. Every 16th is a
/// rest, for the same reason as in [`eventually`].
pub async fn breathe(polls: u64) {
    match polls.is_multiple_of(16) {
        true => tokio::time::sleep(Duration::from_millis(1)).await,
        false => tokio::task::yield_now().await,
    }
}

/// Polls `future` once, and drops it: the output if it was ready.
pub async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    peek(&mut future).await
}

/// Polls `future` once: the output if it was ready.
pub async fn peek<F: Future>(future: &mut Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// What a sender knows after a failure, checked for sense: every accepted item is either delivered
/// or undelivered, and what the peer may hold is in doubt. `received` is how many items the
/// receiver has seen.
pub fn assert_accounted(sender: &Pipe, accepted: u64, received: u64) {
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
pub fn is_gone<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::PeerGone { .. }))
}

//! Edges over a store, on a virtual clock.

use std::time::Duration;

use kvpipe::store::Store;
use kvpipe::transport::Ring;
use kvpipe::transport::store::{StoreConfig, StoreIncoming, StoreOutgoing};
use kvpipe::{Error, Item, Pipe, PipeConfig, Tensor};
use tokio::task::JoinHandle;

/// Beyond everything that happens here, but for a defect.
pub(crate) const HANG: Duration = Duration::from_secs(3600);

pub(crate) fn config() -> StoreConfig {
    StoreConfig { chunk_bytes: 8 << 10, window_bytes: 64 << 10, ..StoreConfig::default() }
}

pub(crate) fn sender<S: Store + Clone>(store: &S, config: StoreConfig, pipe: PipeConfig) -> Pipe {
    sending(store, config, pipe).0
}

pub(crate) fn receiver<S: Store + Clone>(store: &S, config: StoreConfig, pipe: PipeConfig) -> Pipe {
    receiving(store, config, pipe).0
}

/// A sender, and its driver to be killed.
pub(crate) fn sending<S: Store + Clone>(
    store: &S,
    config: StoreConfig,
    pipe: PipeConfig,
) -> (Pipe, JoinHandle<()>) {
    let outgoing = StoreOutgoing::new(store.clone(), Ring::new(0, 2).unwrap(), config);
    let (pipe, driver) = Pipe::send_only(outgoing, pipe);
    (pipe, tokio::spawn(driver))
}

/// A receiver, and its driver to be killed.
pub(crate) fn receiving<S: Store + Clone>(
    store: &S,
    config: StoreConfig,
    pipe: PipeConfig,
) -> (Pipe, JoinHandle<()>) {
    let incoming = StoreIncoming::new(store.clone(), Ring::new(1, 2).unwrap(), config);
    let (pipe, driver) = Pipe::receive_only(incoming, pipe);
    (pipe, tokio::spawn(driver))
}

/// An item that says its number in every eighth byte, so that no part of it is like another's.
pub(crate) fn numbered(number: u64, bytes: usize) -> Item {
    let words = (0..bytes.div_ceil(8) as u64).flat_map(|word| (number << 32 | word).to_le_bytes());
    Some(Tensor::from_vec([bytes], words.take(bytes).collect::<Vec<u8>>()).unwrap())
}

/// Everything up to the end, and the end.
pub(crate) async fn drain(pipe: &Pipe) -> (Vec<Item>, Error) {
    let mut items = Vec::new();
    loop {
        match pipe.recv().await {
            Ok(item) => items.push(item),
            Err(end) => return (items, end),
        }
    }
}

/// Polls a condition that must come true.
pub(crate) async fn eventually(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANG, waiting).await.expect("it does not come true");
}

//! A short exchange whose connection is cut at every byte, and what becomes of each item.

use std::sync::LazyLock;
use std::time::Duration;

use kvpipe::entropy::Entropy;
use kvpipe::pipe::Undelivered;
use kvpipe::store::MemoryStore;
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Error, Item, Pipe, Result};
use tokio::time::Instant;

use crate::cutting::{Cut, CuttingNet, Loss};
use crate::proxy::Way;
use crate::support::{V4, item, limits, ring};

/// A None, an item that travels next to its header, and one that does not.
fn items() -> &'static [Item] {
    static ITEMS: LazyLock<[Item; 3]> = LazyLock::new(|| [None, item(300, 1), item(17_000, 2)]);
    &*ITEMS
}

/// What became of an exchange.
struct Outcome {
    closed: Result<()>,
    undelivered: Vec<Undelivered>,
    received: Vec<Item>,
    ended: Error,
}

fn config(reconnect_timeout: Duration) -> TcpConfig {
    // Of the paused clock, too.
    let connect_timeout = Duration::from_secs(5);
    // With checksums, so that there are trailers to cut.
    let (checksum, entropy) = (true, Entropy::seeded(7));
    TcpConfig { connect_timeout, reconnect_timeout, checksum, entropy, ..TcpConfig::default() }
}

/// As it is by default.
fn unchecked() -> TcpConfig {
    TcpConfig { checksum: false, ..config(RESUMING) }
}

/// The exchange over `net`, from the first byte to the end of both drivers.
async fn exchange(net: &CuttingNet, config: TcpConfig) -> Outcome {
    let store = MemoryStore::new();
    let incoming =
        TcpIncoming::bind(net.clone(), &store, ring(1), V4.parse().unwrap(), config.clone()).await.unwrap();
    let outgoing = TcpOutgoing::new(net.clone(), store, ring(0), config);
    let (receiver, receiving) = Pipe::receive_only(incoming, limits());
    let (sender, sending) = Pipe::send_only(outgoing, limits());
    let send = async {
        for item in items() {
            sender.try_send(item.clone()).unwrap();
        }
        sender.close().await
    };
    let receive = async {
        let mut received = Vec::new();
        loop {
            match receiver.recv().await {
                Ok(item) => received.push(item),
                Err(ended) => return (received, ended),
            }
        }
    };
    let all = async { tokio::join!(send, receive, sending, receiving) };
    // Of the paused clock, which only advances when nothing else is left to do.
    let hang = Duration::from_secs(1000);
    let (closed, (received, ended), (), ()) = tokio::time::timeout(hang, all).await.expect("both ends end");
    Outcome { closed, undelivered: sender.undelivered(), received, ended }
}

const RESUMING: Duration = Duration::from_secs(3);

/// How many bytes an exchange without a cut has, each way.
async fn bytes_each_way(config: TcpConfig) -> [u64; 2] {
    let net = CuttingNet::new(&[]);
    let outcome = exchange(&net, config).await;
    assert!(outcome.closed.is_ok() && outcome.received == items());
    net.read(0)
}

/// Every byte of the handshake, of the headers, of the first item and of the beginnings and ends of
/// the second, and every 127th within its payload.
fn offsets(bytes: u64) -> impl Iterator<Item = u64> {
    (0..=bytes).filter(move |at| *at < 1000 || at + 200 > bytes || at.is_multiple_of(127))
}

/// Every cut of the first connection.
async fn cuts() -> Vec<Cut> {
    cuts_of(config(RESUMING)).await
}

async fn cuts_of(config: TcpConfig) -> Vec<Cut> {
    let [forth, back] = bytes_each_way(config).await;
    let mut cuts = Vec::new();
    for (way, bytes) in [(Way::Forth, forth), (Way::Back, back)] {
        for loss in [Loss::Everything, Loss::Nothing] {
            cuts.extend(offsets(bytes).map(|after_bytes| Cut { way, loss, after_bytes }));
        }
    }
    cuts
}

/// All of it arrived, each item once and in order.
fn assert_complete(outcome: &Outcome, cuts: &[Cut]) {
    let Outcome { closed, undelivered, received, ended } = outcome;
    assert!(received == items(), "{} items after {cuts:?}", received.len());
    assert!(closed.is_ok(), "{closed:?} after {cuts:?}");
    assert!(undelivered.is_empty(), "{undelivered:?} after {cuts:?}");
    assert!(ended.is_closed(), "{ended} after {cuts:?}");
}

/// What arrived is the beginning of what was sent; what the sender does not know to have arrived it
/// gives back, and says which of it may have.
fn assert_accounted(outcome: &Outcome, cuts: &[Cut]) {
    let Outcome { closed, undelivered, received, ended } = outcome;
    let sent = items();
    assert!(sent.starts_with(received), "not the beginning, after {cuts:?}");
    let first = sent.len() - undelivered.len();
    for (sequence, item) in undelivered.iter().zip(first..) {
        assert!(sequence.sequence == item as u64 && sequence.item == sent[item], "after {cuts:?}");
    }
    assert!(first <= received.len(), "acknowledged {first}, received {} after {cuts:?}", received.len());
    let doubts: Vec<bool> = undelivered.iter().map(|undelivered| undelivered.in_doubt).collect();
    let arrived = received.len() - first;
    assert!(doubts[..arrived].iter().all(|in_doubt| *in_doubt), "{doubts:?} after {cuts:?}");
    assert!(doubts.is_sorted_by(|a, b| a >= b), "{doubts:?} after {cuts:?}");
    match closed {
        Ok(()) => assert_eq!(received.len(), sent.len(), "after {cuts:?}"),
        // A cut handshake is tried again, in vain if nobody answers any more.
        Err(Error::Timeout { .. }) => assert!(received.is_empty() && first == 0, "after {cuts:?}"),
        Err(error) => assert!(matches!(error, Error::PeerGone { .. }), "{error} after {cuts:?}"),
    }
    match ended {
        Error::Closed => assert_eq!(received.len(), sent.len(), "after {cuts:?}"),
        Error::Timeout { .. } => assert!(received.is_empty(), "after {cuts:?}"),
        error => assert!(matches!(error, Error::PeerGone { .. }), "{error} after {cuts:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_cut_both_ends_are_done_at_once() {
    let started = Instant::now();
    bytes_each_way(config(RESUMING)).await;
    assert!(started.elapsed() < RESUMING / 10, "the receiver waited for a sender that had finished");
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_byte_loses_and_doubles_nothing() {
    for config in [config(RESUMING), unchecked()] {
        for cut in cuts_of(config.clone()).await {
            let net = CuttingNet::new(&[cut]);
            let outcome = exchange(&net, config.clone()).await;
            assert_complete(&outcome, &[cut]);
            assert!(net.broken() == 1, "{cut:?} did not happen");
            assert!(net.connections() <= 2, "{} connections after {cut:?}", net.connections());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_cuts_at_the_same_byte_lose_and_double_nothing() {
    let mut twice = 0;
    for cut in cuts().await {
        let net = CuttingNet::new(&[cut, cut]);
        let outcome = exchange(&net, config(RESUMING)).await;
        assert_complete(&outcome, &[cut, cut]);
        // A second connection may be done before it comes to that byte.
        twice += usize::from(net.broken() == 2);
    }
    assert!(twice > 100, "{twice} of the second cuts happened");
}

#[tokio::test(start_paused = true)]
async fn two_cuts_at_any_two_bytes_lose_and_double_nothing() {
    let cuts = cuts().await;
    let random = Entropy::seeded(3);
    let draw = || cuts[random.next_u64().unwrap() as usize % cuts.len()];
    for _ in 0..1000 {
        let pair = [draw(), draw()];
        let outcome = exchange(&CuttingNet::new(&pair), config(RESUMING)).await;
        assert_complete(&outcome, &pair);
    }
}

#[tokio::test(start_paused = true)]
async fn without_resuming_a_cut_at_any_byte_leaves_every_item_accounted_for() {
    let mut failures = 0;
    for cut in cuts().await {
        let outcome = exchange(&CuttingNet::new(&[cut]), config(Duration::ZERO)).await;
        assert_accounted(&outcome, &[cut]);
        failures += usize::from(outcome.closed.is_err());
    }
    assert!(failures > 1000, "only {failures} cuts ended the exchange");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_cannot_be_reached_again_leaves_every_item_accounted_for() {
    for cut in cuts().await.into_iter().step_by(3) {
        let outcome = exchange(&CuttingNet::limited(&[cut], 1), config(RESUMING)).await;
        assert_accounted(&outcome, &[cut]);
    }
}

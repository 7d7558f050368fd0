//! The store fails and comes back, or does not.

use std::time::Duration;

use bytes::Bytes;
use kvpipe::store::{MemoryStore, Store};
use kvpipe::transport::store::StoreConfig;
use kvpipe::{Error, Item, PipeConfig, Result};
use tokio::time::{Instant, timeout};

use crate::support::{HANG, config, drain, numbered, receiver, sender};
use crate::watched::Watched;

/// Items of all sizes from nothing to several chunks, and Nones.
fn items() -> Vec<Item> {
    let sizes = [0, 1, 100, 3_000, 8_192, 30_000, 200_000];
    (0..60)
        .map(|number| match number % 5 {
            4 => None,
            _ => numbered(number, sizes[number as usize % sizes.len()]),
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn operations_that_fail_before_or_after_taking_effect_lose_and_double_nothing() {
    for seed in 1..=60 {
        let store = Watched::default();
        store.fails(2 + seed % 12, seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let (heartbeat, reconnect_timeout) = (Duration::from_secs(600), Duration::from_secs(300));
        let config = || StoreConfig { heartbeat, reconnect_timeout, ..config() };
        let (sender, receiver) = (
            sender(&store, config(), PipeConfig::default().with_buffer_bytes(64 << 10)),
            receiver(&store, config(), PipeConfig::default().with_buffer_bytes(64 << 10)),
        );
        let sent = items();
        let sending = async {
            for item in &sent {
                sender.send(item.clone()).await?;
            }
            sender.close().await
        };
        let both = async { tokio::join!(sending, drain(&receiver)) };
        let (closed, (received, end)) = timeout(HANG, both).await.expect("it hangs");
        closed.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(end.is_closed(), "seed {seed}: {end}");
        assert_eq!(received, sent, "seed {seed}");
        assert_eq!(sender.undelivered().len(), 0);
        assert!(store.failed() > 10, "seed {seed}: only {} operations failed", store.failed());
        assert_eq!(store.set_again(), [""; 0], "seed {seed}: a consumed message was set again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_less_than_the_patience_delays_and_no_more() {
    let store = Watched::default();
    let patient = || StoreConfig { reconnect_timeout: Duration::from_secs(3), ..config() };
    let (sender, receiver) = (
        sender(&store, patient(), PipeConfig::default()),
        receiver(&store, patient(), PipeConfig::default()),
    );
    sender.send(numbered(0, 8)).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap(), numbered(0, 8));
    store.is_away(true);
    sender.send(numbered(1, 100_000)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(sender.stats().send.unwrap().delivered_items, 1);
    store.is_away(false);
    assert_eq!(receiver.recv().await.unwrap(), numbered(1, 100_000));
    let (closed, (rest, end)) = tokio::join!(sender.close(), drain(&receiver));
    closed.unwrap();
    assert!(rest.is_empty() && end.is_closed(), "{end}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_ends_both_ends_and_every_item_is_accounted_for() {
    let store = Watched::default();
    let (sender, receiver) =
        (sender(&store, config(), PipeConfig::default()), receiver(&store, config(), PipeConfig::default()));
    for number in 0..3 {
        sender.send(numbered(number, 100)).await.unwrap();
    }
    sender.flush().await.unwrap();
    store.is_away(true);
    let began = Instant::now();
    for number in 3..5 {
        sender.send(numbered(number, 100)).await.unwrap();
    }
    let error = sender.close().await.unwrap_err();
    assert!(matches!(error, Error::PeerGone { .. }), "{error}");
    assert!(
        error.to_string().contains("the store between us was out of reach, or refused us, for 3 s"),
        "{error}"
    );
    // Clearing up is tried for as long once more.
    assert!(began.elapsed() < 3 * config().reconnect_timeout, "{:?}", began.elapsed());
    let undelivered: Vec<u64> = sender.undelivered().iter().map(|item| item.sequence).collect();
    assert_eq!(undelivered, [3, 4]);
    let (received, end) = drain(&receiver).await;
    assert_eq!(received, (0..3).map(|number| numbered(number, 100)).collect::<Vec<_>>());
    assert!(matches!(end, Error::PeerGone { .. }), "{end}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_edge_lives_through_many_short_outages() {
    let store = Watched::default();
    let (sender, receiver) =
        (sender(&store, config(), PipeConfig::default()), receiver(&store, config(), PipeConfig::default()));
    for round in 0..20 {
        store.is_away(true);
        tokio::time::sleep(Duration::from_secs(2)).await;
        store.is_away(false);
        tokio::time::sleep(Duration::from_secs(60)).await;
        sender.send(numbered(round, 8)).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), numbered(round, 8));
    }
    assert!(store.failed() > 100, "only {} operations failed", store.failed());
}

/// A store whose connections last a second.
#[derive(Clone, Default)]
struct ShortLived(MemoryStore);

impl Store for ShortLived {
    async fn get(&self, key: &str, wait: Duration) -> Result<Bytes> {
        let broken = || Error::io("a test", std::io::ErrorKind::ConnectionReset.into());
        timeout(Duration::from_secs(1), self.0.get(key, wait)).await.unwrap_or_else(|_| Err(broken()))
    }

    delegate!(0: set add check wait delete append compare_set multi_get multi_set num_keys list_keys queue_push
        queue_pop try_queue_pop queue_len barrier);
}

#[tokio::test(start_paused = true)]
async fn waits_that_break_sooner_than_the_patience_ends_are_no_outage() {
    let store = ShortLived::default();
    let (sender, receiver) =
        (sender(&store, config(), PipeConfig::default()), receiver(&store, config(), PipeConfig::default()));
    for round in 0..5 {
        sender.send(numbered(round, 8)).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), numbered(round, 8));
        tokio::time::sleep(10 * config().reconnect_timeout).await;
    }
    let (closed, (_, end)) = tokio::join!(sender.close(), drain(&receiver));
    closed.unwrap();
    assert!(end.is_closed(), "{end}");
}

/// A store that breaks the connection of whoever reads a message of the sender's.
#[derive(Clone, Default)]
struct Unreadable(MemoryStore);

impl Store for Unreadable {
    async fn get(&self, key: &str, wait: Duration) -> Result<Bytes> {
        let value = self.0.get(key, wait).await;
        match key.contains("/data/") {
            true => Err(Error::io("a test", std::io::ErrorKind::ConnectionReset.into())),
            false => value,
        }
    }

    delegate!(0: set add check wait delete append compare_set multi_get multi_set num_keys list_keys queue_push
        queue_pop try_queue_pop queue_len barrier);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_never_gets_through_ends_the_edge() {
    let store = Unreadable::default();
    let (sender, receiver) =
        (sender(&store, config(), PipeConfig::default()), receiver(&store, config(), PipeConfig::default()));
    sender.send(numbered(0, 8)).await.unwrap();
    let end = timeout(HANG, receiver.recv()).await.expect("it tries for ever").unwrap_err();
    assert!(matches!(end, Error::PeerGone { .. }), "{end}");
}

/// Its peer's user took its time, and everything was acknowledged.
#[tokio::test(start_paused = true)]
async fn a_sender_that_has_given_up_waiting_for_the_last_word_leaves_no_keys() {
    let store = Watched::default();
    let impatient = PipeConfig { close_timeout: Duration::from_secs(1), ..PipeConfig::default() };
    let (sender, receiver) =
        (sender(&store, config(), impatient), receiver(&store, config(), PipeConfig::default()));
    sender.send(numbered(0, 100)).await.unwrap();
    sender.close().await.unwrap();
    let (received, end) = drain(&receiver).await;
    assert_eq!(received, [numbered(0, 100)]);
    assert!(end.is_closed(), "{end}");
    assert!(store.keys().is_empty(), "{:?}", store.keys());
}

//! Who meets whom.

use std::time::Duration;

use bytes::Bytes;
use kvpipe::store::Store;
use kvpipe::transport::store::StoreConfig;
use kvpipe::wire::text::GroupName;
use kvpipe::{Error, PipeConfig};
use tokio::time::Instant;

use crate::support::{config, drain, eventually, numbered, receiver, receiving, sender};
use crate::watched::Watched;

const RECEIVER_KEY: &str = "kvpipe//edge/0-1/receiver";
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn either_end_may_be_there_first() {
    for sender_first in [false, true] {
        let store = Watched::default();
        let first = || async { tokio::time::sleep(Duration::from_secs(100)).await };
        let (sender, receiver) = if sender_first {
            let sender = sender(&store, config(), PipeConfig::default());
            first().await;
            (sender, receiver(&store, config(), PipeConfig::default()))
        } else {
            let receiver = receiver(&store, config(), PipeConfig::default());
            first().await;
            (sender(&store, config(), PipeConfig::default()), receiver)
        };
        sender.send(numbered(0, 8)).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), numbered(0, 8));
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_died_before_it_was_found_is_passed_over_for_the_next() {
    let store = Watched::default();
    let (_, driver) = receiving(&store, config(), PipeConfig::default());
    eventually(|| store.keys().iter().any(|key| key == RECEIVER_KEY)).await;
    driver.abort();
    let sender = sender(&store, config(), PipeConfig::default());
    sender.send(numbered(0, 8)).await.unwrap();
    // The sender has claimed the dead one.
    eventually(|| store.keys().iter().any(|key| key.ends_with("/sender"))).await;
    let receiver = receiver(&store, config(), PipeConfig::default());
    let (closed, (received, end)) = tokio::join!(sender.close(), drain(&receiver));
    closed.unwrap();
    assert!(end.is_closed(), "{end}");
    assert_eq!(received, [numbered(0, 8)]);
}

#[tokio::test(start_paused = true)]
async fn of_two_senders_one_is_the_peer_and_the_other_waits_for_another_receiver() {
    let store = Watched::default();
    let impatient = || StoreConfig { connect_timeout: 30 * SECOND, ..config() };
    let first = receiver(&store, impatient(), PipeConfig::default());
    let senders = [0, 1].map(|number| {
        let sender = sender(&store, impatient(), PipeConfig::default());
        sender.try_send(numbered(number, 8)).unwrap();
        sender
    });
    let taken = first.recv().await.unwrap();
    tokio::time::sleep(10 * SECOND).await;
    let second = receiver(&store, impatient(), PipeConfig::default());
    let other = second.recv().await.unwrap();
    let mut both = [taken, other].map(|item| item.unwrap().to_vec::<u8>().unwrap()[4]);
    both.sort_unstable();
    assert_eq!(both, [0, 1]);
    drop(senders);
}

#[tokio::test(start_paused = true)]
async fn an_end_whose_peer_never_comes_says_whom_it_awaited_and_leaves_nothing() {
    let store = Watched::default();
    let impatient = || StoreConfig { connect_timeout: 7 * SECOND, ..config() };
    let began = Instant::now();
    let sender = sender(&store, impatient(), PipeConfig::default());
    let error = sender.close().await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("timed out after 7 s waiting for rank 1 to receive (store key {RECEIVER_KEY:?})")
    );
    let receiver = receiver(&store, impatient(), PipeConfig::default());
    let error = receiver.recv().await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("timed out after 7 s waiting for rank 0 to send to us (store key {RECEIVER_KEY:?})")
    );
    assert!(began.elapsed() < 15 * SECOND);
    assert_eq!(store.keys(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn groups_do_not_meet_in_one_store() {
    let store = Watched::default();
    let group = |name| StoreConfig { group: GroupName::new(name).unwrap(), ..config() };
    let senders = ["a", "b"].map(|name| sender(&store, group(name), PipeConfig::default()));
    let receivers = ["b", "a"].map(|name| receiver(&store, group(name), PipeConfig::default()));
    senders[0].send(numbered(1, 8)).await.unwrap();
    senders[1].send(numbered(2, 8)).await.unwrap();
    assert_eq!(receivers[0].recv().await.unwrap(), numbered(2, 8));
    assert_eq!(receivers[1].recv().await.unwrap(), numbered(1, 8));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_hello_is_refused_at_once() {
    for junk in
        [&b""[..], b"GET / HTTP/1.1\r\n", b"KVPIPE\r\n", b"KVPIPE\r\n\x01\x00\x00\x00x", &[0xFF; 5000]]
    {
        let store = Watched::default();
        store.set(RECEIVER_KEY, Bytes::copy_from_slice(junk), SECOND).await.unwrap();
        let sender = sender(&store, config(), PipeConfig::default());
        let error = sender.close().await.unwrap_err();
        assert!(matches!(error, Error::PeerMisbehaved { .. }), "{junk:?}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn settings_that_can_not_work_are_refused_by_name() {
    let refused = async |config: StoreConfig| {
        let store = Watched::default();
        let error = sender(&store, config, PipeConfig::default()).close().await.unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error}");
        error.to_string()
    };
    let heartbeat = refused(StoreConfig { heartbeat: Duration::from_millis(99), ..config() }).await;
    assert!(heartbeat.contains("heartbeat limit of 99ms"), "{heartbeat}");
    let chunk = refused(StoreConfig { chunk_bytes: 8191, ..config() }).await;
    assert!(chunk.contains("chunks of 8191 bytes"), "{chunk}");
    let window = refused(StoreConfig { window_bytes: 16_383, ..config() }).await;
    assert!(window.contains("window of 16383 bytes"), "{window}");
}

//! What the edge takes of the store, and what it leaves there.

use std::time::Duration;

use kvpipe::transport::store::StoreConfig;
use kvpipe::{Error, PipeConfig};

use crate::support::{config, drain, eventually, numbered, receiver, receiving, sender, sending};
use crate::watched::Watched;

#[tokio::test(start_paused = true)]
async fn a_fast_sender_never_grows_the_store_beyond_its_window() {
    let store = Watched::default();
    let pipe = || PipeConfig::default().with_buffer_bytes(100 << 20);
    let sender = sender(&store, config(), pipe());
    let receiver = receiver(&store, config(), PipeConfig::default().with_buffer_bytes(16 << 10));
    // Far more than the window, and nobody takes it.
    for number in 0..200 {
        sender.send(numbered(number, 16 << 10)).await.unwrap();
    }
    eventually(|| receiver.stats().receive.unwrap().queued_bytes == 16 << 10).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let held = store.bytes_max();
    assert!(held >= 32 << 10, "only {held} bytes were ever in the store");
    let sent = 200;
    let receiving = async {
        for number in 0..sent {
            assert_eq!(receiver.recv().await.unwrap(), numbered(number, 16 << 10));
        }
        receiver.recv().await.unwrap_err()
    };
    let (closed, end) = tokio::join!(sender.close(), receiving);
    closed.unwrap();
    assert!(end.is_closed(), "{end}");
    let (most, window) = (store.bytes_max(), config().window_bytes);
    // Reports go out before the keys that they are about are deleted.
    assert!(most <= 2 * window + 4096, "the store held {most} bytes, with a window of {window}");
    assert!(store.longest_value() <= config().chunk_bytes, "a value of {} bytes", store.longest_value());
}

#[tokio::test(start_paused = true)]
async fn nothing_stays_in_the_store_after_a_close() {
    let store = Watched::default();
    let (sender, receiver) =
        (sender(&store, config(), PipeConfig::default()), receiver(&store, config(), PipeConfig::default()));
    for number in 0..40 {
        sender.send(numbered(number, 10_000)).await.unwrap();
    }
    let (closed, (received, end)) = tokio::join!(sender.close(), drain(&receiver));
    closed.unwrap();
    assert!(received.len() == 40 && end.is_closed(), "{end}");
    eventually(|| store.keys().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_stays_when_the_receiver_leaves_early_or_the_sender_gives_up() {
    for sender_gives_up in [false, true] {
        let store = Watched::default();
        let (sender, receiver) = (
            sender(&store, config(), PipeConfig::default()),
            receiver(&store, config(), PipeConfig::default().with_buffer_bytes(10_000)),
        );
        for number in 0..20 {
            sender.send(numbered(number, 10_000)).await.unwrap();
        }
        receiver.recv().await.unwrap();
        if sender_gives_up {
            sender.sender().unwrap().abort("enough");
            let (_, end) = drain(&receiver).await;
            assert!(matches!(end, Error::PeerAborted { .. }), "{end}");
        } else {
            receiver.close().await.unwrap();
            let end = sender.close().await.unwrap_err();
            assert!(matches!(end, Error::ReceiverClosed { .. }), "{end}");
        }
        eventually(|| store.keys().is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_survives_clears_up_after_the_dead() {
    for sender_dies in [false, true] {
        let store = Watched::default();
        let (sender, sender_driver) = sending(&store, config(), PipeConfig::default());
        let narrow = PipeConfig::default().with_buffer_bytes(10_000);
        let (receiver, receiver_driver) = receiving(&store, config(), narrow);
        for number in 0..20 {
            sender.send(numbered(number, 10_000)).await.unwrap();
        }
        receiver.recv().await.unwrap();
        if sender_dies {
            sender_driver.abort();
            let (_, end) = drain(&receiver).await;
            assert!(matches!(end, Error::PeerGone { .. }), "{end}");
        } else {
            receiver_driver.abort();
            let end = sender.close().await.unwrap_err();
            assert!(matches!(end, Error::PeerGone { .. }), "{end}");
        }
        eventually(|| store.keys().is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_small_items_share_a_message() {
    let store = Watched::default();
    let config = || StoreConfig::default();
    let (sender, receiver) =
        (sender(&store, config(), PipeConfig::default()), receiver(&store, config(), PipeConfig::default()));
    for number in 0..5_000 {
        sender.send(numbered(number, 8)).await.unwrap();
    }
    let (closed, (received, _)) = tokio::join!(sender.close(), drain(&receiver));
    closed.unwrap();
    assert_eq!(received.len(), 5_000);
    assert!(store.longest_value() > 100 << 10, "the longest message has {} bytes", store.longest_value());
}

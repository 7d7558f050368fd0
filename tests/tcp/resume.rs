//! Connections that break and come back, or do not.

use std::time::Duration;

use kvpipe::store::MemoryStore;
use kvpipe::transport::tcp::TcpConfig;
use kvpipe::{Error, Item, Pipe, PipeConfig};
use tokio::time::Instant;

use crate::proxy::{End, Flow, Proxy, Way};
use crate::support::{PATIENCE, V4, config, item, limits, receiver, sender, transfers};

/// Items of all kinds.
fn items(count: usize) -> Vec<Item> {
    (0..count).map(|n| if n % 5 == 4 { None } else { item(n * 97, n as u8) }).collect()
}

/// Two ranks and the link between them.
async fn linked(config: TcpConfig) -> (Pipe, Proxy, Pipe) {
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, config.clone(), limits()).await;
    let proxy = Proxy::before(address, &store).await;
    (sender(&store, config, limits()), proxy, receiver)
}

/// The same, after a first item, so that they have met.
async fn met(config: TcpConfig) -> (Pipe, Proxy, Pipe) {
    let (sender, proxy, receiver) = linked(config).await;
    sender.send(None).await.unwrap();
    sender.flush().await.unwrap();
    assert_eq!(receiver.recv_timeout(PATIENCE).await.unwrap(), None);
    (sender, proxy, receiver)
}

/// Both ends must give the other up, the sender with an item that it can't deliver. Gives what they
/// say, and how long it took.
async fn both_give_up(sender: &Pipe, receiver: &Pipe) -> (String, String, Duration) {
    let begin = Instant::now();
    let giving_up = async { tokio::join!(failed_delivery(sender), failure(receiver)) };
    let (sent, received) = tokio::time::timeout(PATIENCE, giving_up).await.expect("both end");
    assert!(matches!(sent, Error::PeerGone { .. }), "{sent}");
    assert!(matches!(received, Error::PeerGone { .. }), "{received}");
    (sent.to_string(), received.to_string(), begin.elapsed())
}

async fn failed_delivery(sender: &Pipe) -> Error {
    match sender.send(item(5, 1)).await {
        Ok(_) => sender.flush().await.unwrap_err(),
        Err(error) => error,
    }
}

async fn failure(receiver: &Pipe) -> Error {
    loop {
        if let Err(error) = receiver.recv().await {
            return error;
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_again_and_again_is_resumed_without_loss_or_duplicate() {
    let (sender, proxy, receiver) = linked(config()).await;
    proxy.breaks_connections_after(200);
    transfers(&sender, &receiver, &items(400)).await;
    assert!(proxy.connections() > 5, "{} connections", proxy.connections());
}

#[tokio::test]
async fn a_reset_or_a_close_in_the_middle_is_resumed_without_loss_or_duplicate() {
    for end in [End::Reset, End::Close] {
        let (sender, proxy, receiver) = linked(config()).await;
        let items = items(400);
        let (sender, ()) = tokio::join!(
            async {
                for item in &items {
                    sender.send(item.clone()).await.unwrap();
                }
                sender.close().await.unwrap();
                sender
            },
            async {
                for (n, item) in items.iter().enumerate() {
                    assert_eq!(&receiver.recv_timeout(PATIENCE).await.unwrap(), item);
                    if n % 20 == 10 {
                        proxy.end(end);
                    }
                }
                assert!(receiver.recv_timeout(PATIENCE).await.unwrap_err().is_closed());
            }
        );
        assert!(sender.undelivered().is_empty());
        assert!(proxy.connections() > 1, "no connection after the first");
    }
}

#[tokio::test]
async fn a_link_that_trickles_delivers_everything() {
    let (sender, proxy, receiver) = linked(config()).await;
    proxy.flows_both_ways(Flow::Trickle);
    transfers(&sender, &receiver, &items(25)).await;
    assert_eq!(proxy.connections(), 1);
    assert!(proxy.forwarded(Way::Forth) > 20_000 && proxy.forwarded(Way::Back) > 100);
}

#[tokio::test]
async fn a_stall_shorter_than_the_heartbeat_limit_is_nothing() {
    let patient = TcpConfig { heartbeat: PATIENCE, ..config() };
    let (sender, proxy, receiver) = met(patient).await;
    proxy.flows_both_ways(Flow::Stall);
    let resuming = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.flows_both_ways(Flow::Pass);
    };
    let items = items(100);
    tokio::join!(transfers(&sender, &receiver, &items), resuming);
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn a_stall_longer_than_the_heartbeat_limit_is_death_at_both_ends_and_not_resumed() {
    let heartbeat = Duration::from_millis(400);
    let quick = TcpConfig { heartbeat, ..config() };
    let (sender, proxy, receiver) = met(quick).await;
    proxy.flows_both_ways(Flow::Stall);
    let (sent, received, took) = both_give_up(&sender, &receiver).await;
    assert!(sent.contains("silent for 0.4 s"), "{sent}");
    assert!(received.contains("silent for 0.4 s"), "{received}");
    // The last byte may have come an eighth of the limit before.
    assert!((heartbeat / 2..heartbeat + Duration::from_secs(10)).contains(&took), "{took:?}");
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn a_stall_of_one_direction_is_death_at_both_ends() {
    for (way, deaf) in [(Way::Forth, "the receiver"), (Way::Back, "the sender")] {
        let heartbeat = Duration::from_millis(400);
        let quick = TcpConfig { heartbeat, reconnect_timeout: heartbeat, ..config() };
        let (sender, proxy, receiver) = met(quick).await;
        proxy.flows(way, Flow::Stall);
        let (sent, received, _) = both_give_up(&sender, &receiver).await;
        let silence = if way == Way::Forth { received } else { sent };
        assert!(silence.contains("silent for 0.4 s"), "{deaf}: {silence}");
    }
}

#[tokio::test]
async fn a_peer_that_cannot_be_reached_for_a_while_is_resumed() {
    let patient = TcpConfig { reconnect_timeout: PATIENCE, ..config() };
    let (sender, proxy, receiver) = met(patient).await;
    proxy.turns_away(true);
    proxy.end(End::Reset);
    let returning = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.turns_away(false);
    };
    let items = items(100);
    tokio::join!(transfers(&sender, &receiver, &items), returning);
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn a_peer_that_stays_out_of_reach_is_gone_after_the_reconnect_timeout() {
    let reconnect_timeout = Duration::from_millis(500);
    let (sender, proxy, receiver) = met(TcpConfig { reconnect_timeout, ..config() }).await;
    sender.send(item(5, 1)).await.unwrap();
    sender.flush().await.unwrap();
    proxy.turns_away(true);
    proxy.end(End::Reset);
    let (sent, received, took) = both_give_up(&sender, &receiver).await;
    assert!(sent.contains("reconnecting failed for 0.5 s"), "{sent}");
    assert!(received.contains("did not come back within 0.5 s"), "{received}");
    assert!((reconnect_timeout / 2..reconnect_timeout + Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_new_connection_that_stalls_is_given_up_after_the_reconnect_timeout() {
    let reconnect_timeout = Duration::from_millis(500);
    let (sender, proxy, receiver) = met(TcpConfig { reconnect_timeout, ..config() }).await;
    proxy.flows_both_ways(Flow::Stall);
    proxy.end(End::Reset);
    let (_, _, took) = both_give_up(&sender, &receiver).await;
    assert!(took < reconnect_timeout + Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn a_host_that_refuses_ends_the_senders_patience_at_once() {
    let patient = TcpConfig { reconnect_timeout: PATIENCE, ..config() };
    let (sender, mut proxy, _receiver) = met(patient).await;
    proxy.stop_listening().await;
    proxy.end(End::Reset);
    let begin = Instant::now();
    let error = failed_delivery(&sender).await;
    assert!(matches!(error, Error::PeerGone { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(begin.elapsed() < PATIENCE / 4, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_break_while_the_inbox_is_full_is_resumed_without_loss_or_duplicate() {
    let store = MemoryStore::new();
    let narrow = PipeConfig { max_items: 3, ..limits() };
    let (receiver, address) = receiver(&store, V4, config(), narrow).await;
    let proxy = Proxy::before(address, &store).await;
    let sender = sender(&store, config(), limits());
    let items = items(50);
    for item in &items {
        sender.send(item.clone()).await.unwrap();
    }
    for connections in 1..5 {
        let full = async {
            let stats = || receiver.stats().receive.unwrap();
            while proxy.connections() < connections || stats().queued_items < 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, full).await.expect("the sender comes back");
        proxy.end(End::Reset);
    }
    for item in items {
        assert_eq!(receiver.recv_timeout(PATIENCE).await.unwrap(), item);
    }
    transfers(&sender, &receiver, &[]).await;
}

#[tokio::test]
async fn a_link_that_never_lets_an_item_through_is_given_up() {
    let patient = TcpConfig { reconnect_timeout: Duration::from_secs(2), ..config() };
    let (sender, proxy, receiver) = met(patient).await;
    // It grows, but sixteen times are not enough for this item.
    proxy.breaks_connections_after(300);
    proxy.end(End::Close);
    sender.send(item(1 << 20, 1)).await.unwrap();
    let error = sender.flush().await.unwrap_err();
    assert!(matches!(error, Error::PeerGone { .. }), "{error}");
    assert!(error.to_string().contains("without an item getting through"), "{error}");
    assert!(failure(&receiver).await.to_string().contains("did not come back"));
}

#[tokio::test]
async fn a_close_during_an_outage_succeeds_if_everything_was_acknowledged() {
    let reconnect_timeout = Duration::from_millis(400);
    let (sender, proxy, _receiver) = met(TcpConfig { reconnect_timeout, ..config() }).await;
    proxy.turns_away(true);
    proxy.end(End::Reset);
    while proxy.turned_away() == 0 {
        tokio::task::yield_now().await;
    }
    sender.close().await.unwrap();
    assert_eq!(sender.undelivered().len(), 0);
}

#[tokio::test]
async fn zero_time_to_reconnect_means_that_a_break_is_the_end() {
    let never = TcpConfig { reconnect_timeout: Duration::ZERO, ..config() };
    let (sender, proxy, receiver) = met(never).await;
    proxy.end(End::Reset);
    both_give_up(&sender, &receiver).await;
    assert_eq!(proxy.connections(), 1);
}

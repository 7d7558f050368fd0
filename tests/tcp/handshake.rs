//! Who is let in, and what the others are told.

use kvpipe::store::{MemoryStore, Store};
use kvpipe::transport::tcp::TcpConfig;
use kvpipe::{Error, PipeConfig};

use crate::support::{
    PATIENCE, SHORT, V4, V6, config, group, item, limits, receiver, secret, sender, transfers,
};

const NAME: &str = "kvpipe//1/address";

#[tokio::test]
async fn ranks_meet_over_ipv4_and_ipv6_and_leave_no_key_behind() {
    for address in [V4, V6] {
        let store = MemoryStore::new();
        let (receiver, _) = receiver(&store, address, config(), limits()).await;
        let sender = sender(&store, config(), limits());
        transfers(&sender, &receiver, &[item(5, 1), None, item(100_000, 2), item(0, 3)]).await;
        assert!(!store.check(&[NAME], PATIENCE).await.unwrap(), "the address was taken");
    }
}

#[tokio::test]
async fn a_shared_secret_lets_the_peer_in() {
    let store = MemoryStore::new();
    let (receiver, _) = receiver(&store, V4, secret("open sesame"), limits()).await;
    let sender = sender(&store, secret("open sesame"), limits());
    transfers(&sender, &receiver, &[item(5, 1), None]).await;
}

/// What both ends say when their settings differ.
async fn refusal(at_sender: (TcpConfig, PipeConfig), at_receiver: (TcpConfig, PipeConfig)) -> (Error, Error) {
    let store = MemoryStore::new();
    let impatient = TcpConfig { connect_timeout: SHORT * 3, ..at_receiver.0 };
    let (receiver, _) = receiver(&store, V4, impatient, at_receiver.1).await;
    let sender = sender(&store, at_sender.0, at_sender.1);
    sender.try_send(None).unwrap();
    tokio::join!(async { sender.close().await.unwrap_err() }, async { receiver.recv().await.unwrap_err() })
}

/// Both ends fail at once, and name `setting` and both values.
async fn both_refuse(
    at_sender: (TcpConfig, PipeConfig),
    at_receiver: (TcpConfig, PipeConfig),
    values: [&str; 2],
) {
    let (sent, received) = refusal(at_sender, at_receiver).await;
    for error in [sent, received] {
        assert!(matches!(error, Error::PeerIncompatible { .. }), "{error}");
        for value in values {
            assert!(error.to_string().contains(value), "{error}");
        }
    }
}

/// The connector fails at once, the receiver takes it for a stranger and says so when its time is up.
async fn only_the_connector_ends(
    at_sender: (TcpConfig, PipeConfig),
    at_receiver: (TcpConfig, PipeConfig),
    names: &str,
) {
    let (sent, received) = refusal(at_sender, at_receiver).await;
    assert!(matches!(sent, Error::PeerIncompatible { .. }), "{sent}");
    assert!(matches!(received, Error::Timeout { .. }), "{received}");
    for error in [sent, received] {
        assert!(error.to_string().contains(names), "{error}");
    }
}

#[tokio::test]
async fn an_item_limit_that_differs_is_refused_by_both() {
    let larger = PipeConfig { max_item_bytes: 2 << 20, ..limits() };
    both_refuse((config(), limits()), (config(), larger), ["1048576", "2097152"]).await;
}

#[tokio::test]
async fn a_checksum_setting_that_differs_is_refused_by_both() {
    let with = TcpConfig { checksum: true, ..config() };
    both_refuse((with, limits()), (config(), limits()), ["checksum", "false"]).await;
}

#[tokio::test]
async fn a_difference_is_refused_by_both_also_behind_a_secret() {
    let larger = PipeConfig { max_item_bytes: 2 << 20, ..limits() };
    both_refuse((secret("s"), limits()), (secret("s"), larger), ["1048576", "2097152"]).await;
}

#[tokio::test]
async fn a_world_size_that_differs_is_refused_by_both() {
    use kvpipe::Pipe;
    use kvpipe::net::TokioNet;
    use kvpipe::transport::Ring;
    use kvpipe::transport::tcp::TcpOutgoing;

    let store = MemoryStore::new();
    let (receiver, _) = receiver(&store, V4, config(), limits()).await;
    let larger = TcpOutgoing::new(TokioNet, store, Ring::new(0, 3).unwrap(), config());
    let (larger, driver) = Pipe::send_only(larger, limits());
    driver.spawn().unwrap();
    for error in [larger.close().await.unwrap_err(), receiver.recv().await.unwrap_err()] {
        assert!(matches!(error, Error::PeerIncompatible { .. }), "{error}");
        assert!(error.to_string().contains("the sender has 3, the receiver 2"), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_secret_is_refused() {
    let wrong = (secret("open barley"), limits());
    only_the_connector_ends(wrong, (secret("open sesame"), limits()), "secret").await;
}

#[tokio::test]
async fn a_secret_at_one_end_only_is_refused() {
    only_the_connector_ends((config(), limits()), (secret("s"), limits()), "only one end has a secret").await;
    only_the_connector_ends((secret("s"), limits()), (config(), limits()), "only one end has a secret").await;
}

#[tokio::test]
async fn another_group_finds_no_address() {
    let store = MemoryStore::new();
    let (_receiver, _) = receiver(&store, V4, group("a"), limits()).await;
    let impatient = TcpConfig { connect_timeout: SHORT, ..group("b") };
    let error = sender(&store, impatient, limits()).close().await.unwrap_err();
    assert!(error.to_string().contains("rank 1 to publish its address"), "{error}");
}

#[tokio::test]
async fn a_stranger_from_another_group_is_refused_and_the_peer_still_gets_in() {
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, group("a"), limits()).await;
    // A sender of group "b" that was led to the wrong door.
    let misled = MemoryStore::new();
    misled.set("kvpipe/b/1/address", address.to_string().into(), PATIENCE).await.unwrap();
    let error = sender(&misled, group("b"), limits()).close().await.unwrap_err();
    assert!(error.to_string().contains(r#"the sender has "b", the receiver "a""#), "{error}");
    transfers(&sender(&store, group("a"), limits()), &receiver, &[item(3, 1)]).await;
}

#[tokio::test]
async fn a_sender_of_the_wrong_rank_is_refused_and_the_peer_still_gets_in() {
    use kvpipe::Pipe;
    use kvpipe::net::TokioNet;
    use kvpipe::transport::Ring;
    use kvpipe::transport::tcp::TcpOutgoing;

    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, config(), limits()).await;
    let misled = MemoryStore::new();
    misled.set("kvpipe//2/address", address.to_string().into(), PATIENCE).await.unwrap();
    let wrong = TcpOutgoing::new(TokioNet, misled, Ring::new(1, 3).unwrap(), config());
    let (wrong, driver) = Pipe::send_only(wrong, limits());
    driver.spawn().unwrap();
    let error = wrong.close().await.unwrap_err();
    assert!(error.to_string().contains("the sender has 1 to 2, the receiver 0 to 1"), "{error}");
    transfers(&sender(&store, config(), limits()), &receiver, &[item(3, 1)]).await;
}

#[tokio::test]
async fn a_peer_that_never_comes_is_named_by_both_ends() {
    let impatient = TcpConfig { connect_timeout: SHORT, ..config() };
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, impatient.clone(), limits()).await;
    let error = receiver.recv().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains(&format!("rank 0 to connect to {address}")), "{error}");

    let error = sender(&MemoryStore::new(), impatient.clone(), limits()).close().await.unwrap_err();
    assert!(error.to_string().contains("0.4 s waiting for rank 1 to publish its address"), "{error}");

    // An address at which nobody listens any more. Time for an attempt also on a busy machine.
    let patient = TcpConfig { connect_timeout: 5 * SHORT, ..impatient };
    let error = sender(&store, patient, limits()).close().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn an_address_in_the_store_that_is_none_is_named() {
    let store = MemoryStore::new();
    store.set(NAME, "nonsense".into(), PATIENCE).await.unwrap();
    let error = sender(&store, config(), limits()).close().await.unwrap_err();
    assert!(error.to_string().contains(r#""nonsense""#), "{error}");
}

#[tokio::test]
async fn an_unspecified_address_and_a_port_in_use_are_refused_at_once() {
    use kvpipe::net::TokioNet;
    use kvpipe::transport::tcp::TcpIncoming;

    let store = MemoryStore::new();
    let bind = |address: String| {
        let store = store.clone();
        async move {
            let address = address.parse().unwrap();
            TcpIncoming::bind(TokioNet, &store, crate::support::ring(1), address, config()).await
        }
    };
    let error = bind("0.0.0.0:0".into()).await.unwrap_err();
    assert!(error.to_string().contains("0.0.0.0 can't be published"), "{error}");

    let taken = bind(V4.into()).await.unwrap();
    let error = bind(taken.local_addr().to_string()).await.unwrap_err();
    assert!(error.to_string().contains(&taken.local_addr().to_string()), "{error}");
}

//! The client: connecting, its connections, timeouts, and servers that misbehave.

use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::store::tcp::protocol::Request;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, Store};
use kvpipe::{Error, Result};

use crate::support::{LONG, Played, connect, in_time, listener, options, server, until};

const SHORT: Duration = Duration::from_millis(50);

async fn connect_within(timeout: Duration, host: &str, port: u16) -> Result<TcpStore<TokioNet>> {
    let mut options = options();
    options.timeout = timeout;
    TcpStore::connect(TokioNet, host, port, options).await
}

#[tokio::test]
async fn connecting_to_a_closed_port_times_out_naming_it_and_the_last_failure() {
    let (listener, address) = listener().await;
    drop(listener);
    let error = connect_within(SHORT, "127.0.0.1", address.port()).await.unwrap_err();
    let Error::Timeout { awaited, after } = &error else { panic!("{error}") };
    assert_eq!(*after, SHORT);
    assert!(awaited.contains(&address.to_string()) && awaited.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_host_that_does_not_resolve_is_named() {
    let error = connect_within(SHORT, "no-such-host.invalid", 1).await.unwrap_err();
    assert!(error.to_string().contains("no-such-host.invalid:1"), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_does_not_hang_the_client() {
    let (_listener, address) = listener().await;
    let error = connect_within(SHORT, "127.0.0.1", address.port()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn connecting_waits_for_a_server_that_starts_later() {
    let (early, address) = listener().await;
    drop(early);
    let connecting = connect_within(LONG, "localhost", address.port());
    tokio::pin!(connecting);
    // The first attempt has failed for certain when another one is refused after it.
    tokio::select! { biased;
        _ = &mut connecting => panic!("nobody listens"),
        refused = tokio::net::TcpStream::connect(address) => drop(refused.unwrap_err()),
    }
    let server = TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.unwrap();
    let store = connecting.await.unwrap();
    assert_eq!(store.server_addr(), server.local_addr());
}

#[tokio::test]
async fn a_server_that_closes_the_first_connection_is_tried_again() {
    let (listener, address) = listener().await;
    let playing = async {
        drop(listener.accept().await.unwrap());
        Played::accept(&listener).await
    };
    let (_store, _played) = in_time(async { tokio::join!(connect(address), playing) }).await;
}

#[tokio::test]
async fn a_wrong_echo_is_no_store() {
    let (listener, address) = listener().await;
    let playing = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP").await.unwrap();
        }
    };
    let error = tokio::select! { biased;
        connected = connect_within(SHORT, "127.0.0.1", address.port()) => connected.unwrap_err(),
        () = playing => unreachable!(),
    };
    assert!(error.to_string().contains("PING"), "{error}");
}

#[tokio::test]
async fn its_local_address_is_the_servers_view_of_it() {
    let (listener, address) = listener().await;
    let (store, played) = tokio::join!(connect(address), Played::accept(&listener));
    assert_eq!(store.local_addr(), played.stream.peer_addr().unwrap());
}

#[tokio::test]
async fn a_get_that_waits_blocks_nobody_else_on_the_same_store() {
    let server = server().await;
    let store = connect(server.local_addr()).await;
    let others = async {
        until(|| server.waiting() == 1).await;
        assert_eq!(store.add("n", 1, LONG).await?, 1);
        store.set("k", "v".into(), LONG).await
    };
    let (got, others) = tokio::join!(store.get("k", LONG), others);
    others.unwrap();
    assert_eq!(got.unwrap(), "v");
}

#[tokio::test]
async fn a_get_that_times_out_leaves_no_waiter_and_keeps_its_connection() {
    let server = server().await;
    let store = connect(server.local_addr()).await;
    let error = store.get("never", SHORT).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "timed out after 0.05 s waiting for the store at {}, getting key \"never\"",
            server.local_addr()
        )
    );
    assert_eq!((server.waiting(), server.clients()), (0, 1));
    store.set("k", "v".into(), LONG).await.unwrap();
    assert_eq!(server.clients(), 1);
}

#[tokio::test]
async fn a_get_that_is_dropped_leaves_no_waiter_and_takes_its_connection_with_it() {
    let server = server().await;
    let store = connect(server.local_addr()).await;
    tokio::select! { biased;
        _ = store.get("k", LONG) => panic!("the key is not there"),
        () = until(|| server.waiting() == 1) => {}
    }
    until(|| server.clients() == 0).await;
    assert_eq!(server.waiting(), 0);
    store.set("k", "v".into(), LONG).await.unwrap();
    assert_eq!(store.get("k", LONG).await.unwrap(), "v");
}

#[tokio::test]
async fn its_debug_output_says_which_store_it_is() {
    let server = server().await;
    let store = connect(server.local_addr()).await;
    assert!(format!("{store:?}").contains(&format!("address: {}", server.local_addr())), "{store:?}");
}

#[tokio::test]
async fn connections_are_used_again_and_not_opened_for_every_operation() {
    let server = server().await;
    let store = connect(server.local_addr()).await;
    for _ in 0..10 {
        store.add("n", 1, LONG).await.unwrap();
        store.get("n", LONG).await.unwrap();
    }
    assert_eq!(server.clients(), 1);
}

#[tokio::test]
async fn a_key_that_comes_while_its_wait_is_cancelled_confuses_nothing() {
    let (listener, address) = listener().await;
    let playing = async {
        let mut played = Played::accept(&listener).await;
        assert!(matches!(played.request().await, Some(Request::Wait { .. })));
        assert_eq!(played.request().await, Some(Request::CancelWait));
        // STOP_WAITING was on its way, then comes the answer to CANCEL_WAIT.
        played.answer(&[0, 1]).await;
        assert!(matches!(played.request().await, Some(Request::Check { .. })));
        played.answer(&[0]).await;
    };
    let driving = async {
        let store = connect(address).await;
        let error = store.get("k", Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(store.check(&["k"], LONG).await.unwrap(), "on the same connection");
    };
    in_time(async { tokio::join!(driving, playing) }).await;
}

#[tokio::test]
async fn every_reply_has_a_deadline() {
    let (listener, address) = listener().await;
    let (store, _played) = tokio::join!(connect(address), Played::accept(&listener));
    // The server has accepted all of these and says nothing.
    let errors = [
        store.check(&["k"], SHORT).await.unwrap_err(),
        store.add("k", 1, SHORT).await.unwrap_err(),
        store.set("k", "v".into(), SHORT).await.unwrap_err(),
        store.delete("k", SHORT).await.unwrap_err(),
        store.get("k", SHORT).await.unwrap_err(),
        store.append("k", "v".into(), SHORT).await.unwrap_err(),
        store.compare_set("k", "".into(), "v".into(), SHORT).await.unwrap_err(),
        store.multi_get(&["k"], SHORT).await.unwrap_err(),
        store.multi_set(&[("k", "v".into())], SHORT).await.unwrap_err(),
        store.num_keys(SHORT).await.unwrap_err(),
        store.list_keys(SHORT).await.unwrap_err(),
        store.queue_push("k", "v".into(), SHORT).await.unwrap_err(),
        store.queue_pop("k", SHORT).await.unwrap_err(),
        store.try_queue_pop("k", SHORT).await.unwrap_err(),
        store.queue_len("k", SHORT).await.unwrap_err(),
        store.barrier("k", 2, SHORT).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
}

/// Whatever `$operation` sends first breaks its connection; gives how the operation ends, and how many
/// connections were used for it.
macro_rules! broken {
    ($store:ident: $operation:expr) => {{
        let (listener, address) = listener().await;
        let ($store, mut played) = tokio::join!(connect(address), Played::accept(&listener));
        let mut connections = 1;
        let operating = async { $operation.await };
        let breaking = async {
            loop {
                played.request().await.expect("a request");
                drop(played);
                played = Played::accept(&listener).await;
                connections += 1;
            }
        };
        let ended = in_time(async {
            tokio::select! { biased;
                ended = operating => ended,
                () = breaking => unreachable!(),
            }
        });
        (ended.await.unwrap_err(), connections)
    }};
}

#[tokio::test]
async fn only_what_changes_nothing_is_sent_again_and_only_once() {
    let changing = [
        broken!(store: store.set("k", "v".into(), LONG)),
        broken!(store: store.append("k", "v".into(), LONG)),
        broken!(store: store.multi_set(&[("k", "v".into())], LONG)),
        broken!(store: store.queue_push("k", "v".into(), LONG)),
        broken!(store: store.compare_set("k", "".into(), "v".into(), LONG)),
        broken!(store: store.try_queue_pop("k", LONG)),
        broken!(store: store.barrier("k", 2, LONG)),
        broken!(store: store.delete("k", LONG)),
    ];
    for (error, connections) in changing {
        assert_eq!(connections, 1, "{error}");
        assert!(error.to_string().contains("\"k\""), "{error}");
    }
    let looking = [
        broken!(store: store.get("k", LONG)),
        broken!(store: store.multi_get(&["k"], LONG)),
        broken!(store: store.wait(&["k"], LONG)),
        broken!(store: store.check(&["k"], LONG)),
        broken!(store: store.num_keys(LONG)),
        broken!(store: store.list_keys(LONG)),
        broken!(store: store.queue_len("k", LONG)),
        broken!(store: store.queue_pop("k", LONG)),
    ];
    for (error, connections) in looking {
        assert_eq!(connections, 2, "{error}");
    }
}

#[tokio::test]
async fn a_pop_whose_connection_breaks_is_never_sent_again() {
    let (listener, address) = listener().await;
    let (store, mut played) = tokio::join!(connect(address), Played::accept(&listener));
    let breaking = async move {
        assert!(matches!(played.request().await, Some(Request::Wait { .. })));
        played.answer(&[0]).await;
        assert!(matches!(played.request().await, Some(Request::QueuePop { .. })));
        drop(played);
    };
    let (popped, ()) = in_time(async { tokio::join!(store.queue_pop("q", LONG), breaking) }).await;
    assert!(popped.unwrap_err().to_string().contains("popping from the queue of key \"q\""));
    assert!(tokio::time::timeout(SHORT, listener.accept()).await.is_err(), "another connection was opened");
}

#[tokio::test]
async fn a_server_that_may_lack_the_operation_is_said_to() {
    let errors = [
        (
            broken!(store: store.queue_push("k", "v".into(), LONG)),
            "QUEUE_PUSH",
            "libuv server since torch 2.8",
        ),
        (broken!(store: store.try_queue_pop("k", LONG)), "QUEUE_POP", "libuv server since torch 2.8"),
        (broken!(store: store.queue_len("k", LONG)), "QUEUE_LEN", "libuv server since torch 2.8"),
        (broken!(store: store.list_keys(LONG)), "LIST_KEYS", "since torch 2.10"),
        (broken!(store: store.barrier("k", 2, LONG)), "BARRIER", "since torch 2.12"),
    ];
    for ((error, _), operation, since) in errors {
        let text = error.to_string();
        assert!(text.contains(operation) && text.contains(since), "{text}");
    }
    let (error, _) = broken!(store: store.add("k", 1, LONG));
    assert!(!error.to_string().contains("torch"), "{error}");
}

#[tokio::test]
async fn an_add_whose_connection_breaks_is_never_sent_again() {
    let (listener, address) = listener().await;
    let (store, mut played) = tokio::join!(connect(address), Played::accept(&listener));
    let breaking = async move {
        assert!(matches!(played.request().await, Some(Request::Add { .. })));
        drop(played);
    };
    let (added, ()) = in_time(async { tokio::join!(store.add("n", 1, LONG), breaking) }).await;
    let error = added.unwrap_err();
    assert!(
        matches!(error, Error::Io { .. }) && error.to_string().contains("adding to key \"n\""),
        "{error}"
    );
    let again = tokio::time::timeout(SHORT, listener.accept()).await;
    assert!(again.is_err(), "another connection was opened");
}

#[tokio::test]
async fn a_get_whose_connection_breaks_is_repeated_once() {
    let (listener, address) = listener().await;
    let (store, mut played) = tokio::join!(connect(address), Played::accept(&listener));
    let playing = async {
        // The key is deleted between WAIT and GET, for which the server closes the connection.
        assert!(matches!(played.request().await, Some(Request::Wait { .. })));
        played.answer(&[0]).await;
        assert!(matches!(played.request().await, Some(Request::Get { .. })));
        drop(played);
        let mut played = Played::accept(&listener).await;
        assert!(matches!(played.request().await, Some(Request::Wait { .. })));
        played.answer(&[0]).await;
        assert!(matches!(played.request().await, Some(Request::Get { .. })));
        played.answer(&[1, 0, 0, 0, 0, 0, 0, 0, b'v']).await;
    };
    let (got, ()) = in_time(async { tokio::join!(store.get("k", LONG), playing) }).await;
    assert_eq!(got.unwrap(), "v");
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closed_is_replaced_even_for_add() {
    let first = server().await;
    let address = first.local_addr();
    let store = connect(address).await;
    first.shutdown().await;
    let _second = TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.unwrap();
    // Its exchanges let the runtime see, too, that the first connection has ended.
    connect(address).await.set("k", "v".into(), LONG).await.unwrap();
    assert_eq!(store.add("n", 1, LONG).await.unwrap(), 1);
}

#[tokio::test]
async fn a_value_over_the_clients_limit_is_refused_before_it_is_read() {
    let (listener, address) = listener().await;
    let (store, mut played) = tokio::join!(connect(address), Played::accept(&listener));
    let playing = async {
        assert!(matches!(played.request().await, Some(Request::Wait { .. })));
        played.answer(&[0]).await;
        assert!(matches!(played.request().await, Some(Request::Get { .. })));
        played.answer(&(1u64 << 62).to_le_bytes()).await;
    };
    let (got, ()) = in_time(async { tokio::join!(store.get("k", LONG), playing) }).await;
    let error = got.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("4611686018427387904"), "{error}: {source}");
}

#[tokio::test]
async fn rank_0_waits_until_all_workers_have_joined() {
    let server = server().await;
    let (zero, one) = (connect(server.local_addr()).await, connect(server.local_addr()).await);
    assert_eq!(zero.join(LONG).await.unwrap(), 1);
    let error = zero.wait_for_workers(2, SHORT).await.unwrap_err();
    assert!(error.to_string().contains("1 of 2 have joined"), "{error}");
    let (waited, joined) = tokio::join!(biased; zero.wait_for_workers(2, LONG), one.join(LONG));
    waited.unwrap();
    assert_eq!(joined.unwrap(), 2);
    // The counter is the one key without a slash, so no user's key can touch it.
    assert!(!one.check(&["init/"], LONG).await.unwrap());
}

#[tokio::test]
async fn a_worker_is_counted_once() {
    let server = server().await;
    let store = connect(server.local_addr()).await;
    store.join(LONG).await.unwrap();
    let error = store.clone().join(LONG).await.unwrap_err();
    assert!(matches!(error, Error::Misuse(_)), "{error}");
    assert_eq!(connect(server.local_addr()).await.join(LONG).await.unwrap(), 2);
}

//! What must hold for every store, run over each of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use kvpipe::Error;
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, MemoryStore, PrefixStore, Store};

use crate::support::{LONG, connect_with, in_time, server_at};

/// One store as two ranks see it, and what keeps it alive.
struct World<S> {
    a: S,
    b: S,
    _server: Option<TcpStoreServer>,
}

/// The limit on values in this suite: not so large that testing it takes long.
const VALUE_BYTES: usize = 1 << 20;

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.value_bytes = VALUE_BYTES;
    limits
}

fn memory() -> World<MemoryStore> {
    let store = MemoryStore::with_limits(limits());
    World { a: store.clone(), b: store, _server: None }
}

async fn tcp(host: IpAddr) -> World<TcpStore<TokioNet>> {
    let server = server_at(host, limits()).await;
    let connect = || connect_with(server.local_addr(), limits());
    World { a: connect().await, b: connect().await, _server: Some(server) }
}

fn prefixed<S: Store>(world: World<S>) -> World<PrefixStore<S>> {
    let World { a, b, _server } = world;
    World { a: PrefixStore::new("p", a), b: PrefixStore::new("p", b), _server }
}

macro_rules! for_every_store {
    ($($scenario:ident)*) => {
        for_every_store!(@over memory: memory(); $($scenario)*);
        for_every_store!(@over prefix_of_memory: prefixed(memory()); $($scenario)*);
        for_every_store!(@over tcp_v4: tcp(Ipv4Addr::LOCALHOST.into()).await; $($scenario)*);
        for_every_store!(@over tcp_v6: tcp(Ipv6Addr::LOCALHOST.into()).await; $($scenario)*);
        for_every_store!(@over prefix_of_tcp: prefixed(tcp(Ipv4Addr::LOCALHOST.into()).await); $($scenario)*);
    };
    (@over $store:ident: $world:expr; $($scenario:ident)*) => {
        mod $store {
            use super::*;

            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario($world).await;
            })*
        }
    };
}

for_every_store! {
    a_value_comes_back_as_it_was_set
    a_second_set_replaces_the_first
    get_waits_for_the_key
    get_times_out_naming_the_key_and_how_long
    many_gets_of_one_key_all_wake
    add_counts_from_zero_and_stores_decimal_text
    add_refuses_a_value_that_is_no_number_and_leaves_it
    add_refuses_overflow_and_leaves_the_value
    concurrent_adds_all_count
    add_wakes_a_waiter
    check_is_true_only_for_all_keys
    wait_returns_once_every_key_has_come_even_if_one_is_gone_again
    wait_for_nothing_or_for_what_is_there_returns
    wait_times_out_naming_its_keys
    delete_says_whether_the_key_was_there
    a_dropped_get_leaves_the_store_usable
    a_key_over_the_limit_is_the_callers_mistake
    a_value_over_the_limit_is_the_callers_mistake_and_the_limit_itself_is_not
    the_longest_timeout_is_accepted
}

async fn a_value_comes_back_as_it_was_set<S: Store>(World { a, b, .. }: World<S>) {
    let every_byte: Bytes = (0..=255).collect();
    for value in [Bytes::new(), every_byte, vec![7; 300_000].into()] {
        a.set("key/with ünicode", value.clone(), LONG).await.unwrap();
        assert_eq!(b.get("key/with ünicode", LONG).await.unwrap(), value);
    }
}

async fn a_second_set_replaces_the_first<S: Store>(World { a, b, .. }: World<S>) {
    a.set("k", "long value".into(), LONG).await.unwrap();
    b.set("k", "v".into(), LONG).await.unwrap();
    assert_eq!(a.get("k", LONG).await.unwrap(), "v");
}

async fn get_waits_for_the_key<S: Store>(World { a, b, .. }: World<S>) {
    let (got, set) = tokio::join!(biased; a.get("k", LONG), b.set("k", "v".into(), LONG));
    set.unwrap();
    assert_eq!(got.unwrap(), "v");
}

async fn get_times_out_naming_the_key_and_how_long<S: Store>(World { a, .. }: World<S>) {
    let error = a.get("never", Duration::from_millis(20)).await.unwrap_err();
    let Error::Timeout { awaited, after } = &error else { panic!("{error}") };
    assert!(awaited.contains("never\""), "{error}");
    assert_eq!(*after, Duration::from_millis(20));
}

async fn many_gets_of_one_key_all_wake<S: Store>(World { a, b, .. }: World<S>) {
    let (one, two, three, set) = tokio::join!(biased;
        a.get("k", LONG), a.get("k", LONG), b.get("k", LONG), b.set("k", "v".into(), LONG));
    set.unwrap();
    assert_eq!([one.unwrap(), two.unwrap(), three.unwrap()], ["v", "v", "v"]);
}

async fn add_counts_from_zero_and_stores_decimal_text<S: Store>(World { a, b, .. }: World<S>) {
    assert_eq!(a.add("n", 5, LONG).await.unwrap(), 5);
    assert_eq!(b.add("n", -7, LONG).await.unwrap(), -2);
    assert_eq!(a.get("n", LONG).await.unwrap(), "-2");
    a.set("n", "40".into(), LONG).await.unwrap();
    assert_eq!(b.add("n", 2, LONG).await.unwrap(), 42);
}

async fn add_refuses_a_value_that_is_no_number_and_leaves_it<S: Store>(World { a, b, .. }: World<S>) {
    a.set("n", "12abc".into(), LONG).await.unwrap();
    let error = a.add("n", 1, LONG).await.unwrap_err();
    assert!(error.to_string().contains("n\""), "{error}");
    assert_eq!(b.get("n", LONG).await.unwrap(), "12abc");
    assert_eq!(a.add("other", 1, LONG).await.unwrap(), 1);
}

async fn add_refuses_overflow_and_leaves_the_value<S: Store>(World { a, b, .. }: World<S>) {
    assert_eq!(a.add("n", i64::MAX, LONG).await.unwrap(), i64::MAX);
    a.add("n", 1, LONG).await.unwrap_err();
    assert_eq!(b.add("n", 0, LONG).await.unwrap(), i64::MAX);
}

async fn concurrent_adds_all_count<S: Store>(World { a, b, .. }: World<S>) {
    for _ in 0..20 {
        let (one, two, three) = tokio::join!(a.add("n", 1, LONG), b.add("n", 1, LONG), b.add("n", 1, LONG));
        one.unwrap();
        two.unwrap();
        three.unwrap();
    }
    assert_eq!(a.add("n", 0, LONG).await.unwrap(), 60);
}

async fn add_wakes_a_waiter<S: Store>(World { a, b, .. }: World<S>) {
    let (waited, sum) = tokio::join!(biased; a.wait(&["n"], LONG), b.add("n", 3, LONG));
    waited.unwrap();
    assert_eq!(sum.unwrap(), 3);
}

async fn check_is_true_only_for_all_keys<S: Store>(World { a, b, .. }: World<S>) {
    assert!(a.check(&[], LONG).await.unwrap());
    a.set("k", Bytes::new(), LONG).await.unwrap();
    assert!(b.check(&["k", "k"], LONG).await.unwrap());
    assert!(!b.check(&["k", "other"], LONG).await.unwrap());
}

async fn wait_returns_once_every_key_has_come_even_if_one_is_gone_again<S: Store>(world: World<S>) {
    let World { a, b, .. } = world;
    let others = async {
        b.set("x", "1".into(), LONG).await?;
        // Proves that the wait is not over yet.
        assert!(b.delete("x", LONG).await?);
        b.set("y", "2".into(), LONG).await
    };
    let (waited, others) = tokio::join!(biased; a.wait(&["x", "y", "x"], LONG), others);
    others.unwrap();
    waited.unwrap();
    assert!(!a.check(&["x"], LONG).await.unwrap());
}

async fn wait_for_nothing_or_for_what_is_there_returns<S: Store>(World { a, .. }: World<S>) {
    a.wait(&[], LONG).await.unwrap();
    a.set("k", "v".into(), LONG).await.unwrap();
    a.wait(&["k"], LONG).await.unwrap();
}

async fn wait_times_out_naming_its_keys<S: Store>(World { a, .. }: World<S>) {
    a.set("here", "v".into(), LONG).await.unwrap();
    let error = a.wait(&["here", "never"], Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("here\"") && error.to_string().contains("never\""), "{error}");
}

async fn delete_says_whether_the_key_was_there<S: Store>(World { a, b, .. }: World<S>) {
    a.set("k", "v".into(), LONG).await.unwrap();
    assert!(b.delete("k", LONG).await.unwrap());
    assert!(!a.delete("k", LONG).await.unwrap());
    assert!(!a.check(&["k"], LONG).await.unwrap());
}

async fn a_dropped_get_leaves_the_store_usable<S: Store>(World { a, b, .. }: World<S>) {
    {
        let getting = a.get("k", LONG);
        tokio::pin!(getting);
        // Far enough that a request of its own is on the wire, or that it is parked.
        tokio::select! { biased;
            _ = &mut getting => panic!("the key is not there"),
            set = b.set("other", "v".into(), LONG) => set.unwrap(),
        }
    }
    a.set("k", "v".into(), LONG).await.unwrap();
    assert_eq!(a.get("k", LONG).await.unwrap(), "v");
    assert_eq!(a.get("other", LONG).await.unwrap(), "v");
}

async fn a_key_over_the_limit_is_the_callers_mistake<S: Store>(World { a, .. }: World<S>) {
    let long = "k".repeat(Limits::default().key_bytes + 1);
    let errors = [
        a.set(&long, "v".into(), LONG).await.unwrap_err(),
        a.get(&long, LONG).await.unwrap_err(),
        a.add(&long, 1, LONG).await.unwrap_err(),
        a.check(&[&long], LONG).await.unwrap_err(),
        a.wait(&["k", &long], LONG).await.unwrap_err(),
        a.delete(&long, LONG).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, Error::Misuse(message) if message.contains("8192")), "{error}");
    }
}

async fn a_value_over_the_limit_is_the_callers_mistake_and_the_limit_itself_is_not<S: Store>(
    World { a, b, .. }: World<S>,
) {
    let largest = Bytes::from(vec![3; VALUE_BYTES]);
    a.set("k", largest.clone(), LONG).await.unwrap();
    let over = Bytes::from(vec![4; largest.len() + 1]);
    let error = a.set("k", over, LONG).await.unwrap_err();
    assert!(matches!(&error, Error::Misuse(message) if message.contains("1048577")), "{error}");
    assert!(b.get("k", LONG).await.unwrap() == largest);
}

async fn the_longest_timeout_is_accepted<S: Store>(World { a, b, .. }: World<S>) {
    let longest = Duration::MAX;
    let both = async { tokio::join!(biased; a.get("k", longest), b.set("k", "v".into(), longest)) };
    let (got, set) = in_time(both).await;
    set.unwrap();
    got.unwrap();
}

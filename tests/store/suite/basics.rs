//! Values, counters and waits.

use std::time::Duration;

use bytes::Bytes;
use kvpipe::Error;
use kvpipe::store::{Limits, Store};

use super::{VALUE_BYTES, World};
use crate::support::{LONG, in_time};

pub(crate) async fn a_value_comes_back_as_it_was_set<S: Store>(World { a, b, .. }: World<S>) {
    let every_byte: Bytes = (0..=255).collect();
    for value in [Bytes::new(), every_byte, vec![7; 300_000].into()] {
        a.set("key/with ünicode", value.clone(), LONG).await.unwrap();
        assert_eq!(b.get("key/with ünicode", LONG).await.unwrap(), value);
    }
}

pub(crate) async fn a_second_set_replaces_the_first<S: Store>(World { a, b, .. }: World<S>) {
    a.set("k", "long value".into(), LONG).await.unwrap();
    b.set("k", "v".into(), LONG).await.unwrap();
    assert_eq!(a.get("k", LONG).await.unwrap(), "v");
}

pub(crate) async fn get_waits_for_the_key<S: Store>(World { a, b, .. }: World<S>) {
    let (got, set) = tokio::join!(biased; a.get("k", LONG), b.set("k", "v".into(), LONG));
    set.unwrap();
    assert_eq!(got.unwrap(), "v");
}

pub(crate) async fn get_times_out_naming_the_key_and_how_long<S: Store>(World { a, .. }: World<S>) {
    let error = a.get("never", Duration::from_millis(20)).await.unwrap_err();
    let Error::Timeout { awaited, after } = &error else { panic!("{error}") };
    assert!(awaited.contains("never\""), "{error}");
    assert_eq!(*after, Duration::from_millis(20));
}

pub(crate) async fn many_gets_of_one_key_all_wake<S: Store>(World { a, b, .. }: World<S>) {
    let (one, two, three, set) = tokio::join!(biased;
        a.get("k", LONG), a.get("k", LONG), b.get("k", LONG), b.set("k", "v".into(), LONG));
    set.unwrap();
    assert_eq!([one.unwrap(), two.unwrap(), three.unwrap()], ["v", "v", "v"]);
}

pub(crate) async fn add_counts_from_zero_and_stores_decimal_text<S: Store>(World { a, b, .. }: World<S>) {
    assert_eq!(a.add("n", 5, LONG).await.unwrap(), 5);
    assert_eq!(b.add("n", -7, LONG).await.unwrap(), -2);
    assert_eq!(a.get("n", LONG).await.unwrap(), "-2");
    a.set("n", "40".into(), LONG).await.unwrap();
    assert_eq!(b.add("n", 2, LONG).await.unwrap(), 42);
}

pub(crate) async fn add_refuses_a_value_that_is_no_number_and_leaves_it<S: Store>(
    World { a, b, .. }: World<S>,
) {
    a.set("n", "12abc".into(), LONG).await.unwrap();
    let error = a.add("n", 1, LONG).await.unwrap_err();
    assert!(error.to_string().contains("n\""), "{error}");
    assert_eq!(b.get("n", LONG).await.unwrap(), "12abc");
    assert_eq!(a.add("other", 1, LONG).await.unwrap(), 1);
}

pub(crate) async fn add_refuses_overflow_and_leaves_the_value<S: Store>(World { a, b, .. }: World<S>) {
    assert_eq!(a.add("n", i64::MAX, LONG).await.unwrap(), i64::MAX);
    a.add("n", 1, LONG).await.unwrap_err();
    assert_eq!(b.add("n", 0, LONG).await.unwrap(), i64::MAX);
}

pub(crate) async fn concurrent_adds_all_count<S: Store>(World { a, b, .. }: World<S>) {
    for _ in 0..20 {
        let (one, two, three) = tokio::join!(a.add("n", 1, LONG), b.add("n", 1, LONG), b.add("n", 1, LONG));
        one.unwrap();
        two.unwrap();
        three.unwrap();
    }
    assert_eq!(a.add("n", 0, LONG).await.unwrap(), 60);
}

pub(crate) async fn add_wakes_a_waiter<S: Store>(World { a, b, .. }: World<S>) {
    let (waited, sum) = tokio::join!(biased; a.wait(&["n"], LONG), b.add("n", 3, LONG));
    waited.unwrap();
    assert_eq!(sum.unwrap(), 3);
}

pub(crate) async fn check_is_true_only_for_all_keys<S: Store>(World { a, b, .. }: World<S>) {
    assert!(a.check(&[], LONG).await.unwrap());
    a.set("k", Bytes::new(), LONG).await.unwrap();
    assert!(b.check(&["k", "k"], LONG).await.unwrap());
    assert!(!b.check(&["k", "other"], LONG).await.unwrap());
}

pub(crate) async fn wait_returns_once_every_key_has_come_even_if_one_is_gone_again<S: Store>(
    world: World<S>,
) {
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

pub(crate) async fn wait_for_nothing_or_for_what_is_there_returns<S: Store>(World { a, .. }: World<S>) {
    a.wait(&[], LONG).await.unwrap();
    a.set("k", "v".into(), LONG).await.unwrap();
    a.wait(&["k"], LONG).await.unwrap();
}

pub(crate) async fn wait_times_out_naming_its_keys<S: Store>(World { a, .. }: World<S>) {
    a.set("here", "v".into(), LONG).await.unwrap();
    let error = a.wait(&["here", "never"], Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("here\"") && error.to_string().contains("never\""), "{error}");
}

pub(crate) async fn delete_says_whether_the_key_was_there<S: Store>(World { a, b, .. }: World<S>) {
    a.set("k", "v".into(), LONG).await.unwrap();
    assert!(b.delete("k", LONG).await.unwrap());
    assert!(!a.delete("k", LONG).await.unwrap());
    assert!(!a.check(&["k"], LONG).await.unwrap());
}

pub(crate) async fn a_dropped_get_leaves_the_store_usable<S: Store>(World { a, b, .. }: World<S>) {
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

pub(crate) async fn a_key_over_the_limit_is_the_callers_mistake<S: Store>(World { a, .. }: World<S>) {
    let long = "k".repeat(Limits::default().key_bytes + 1);
    let errors = [
        a.set(&long, "v".into(), LONG).await.unwrap_err(),
        a.get(&long, LONG).await.unwrap_err(),
        a.add(&long, 1, LONG).await.unwrap_err(),
        a.check(&[&long], LONG).await.unwrap_err(),
        a.wait(&["k", &long], LONG).await.unwrap_err(),
        a.delete(&long, LONG).await.unwrap_err(),
        a.append(&long, "v".into(), LONG).await.unwrap_err(),
        a.compare_set(&long, "".into(), "v".into(), LONG).await.unwrap_err(),
        a.multi_get(&["k", &long], LONG).await.unwrap_err(),
        a.multi_set(&[("k", "v".into()), (&long, "v".into())], LONG).await.unwrap_err(),
        a.queue_push(&long, "v".into(), LONG).await.unwrap_err(),
        a.queue_pop(&long, LONG).await.unwrap_err(),
        a.try_queue_pop(&long, LONG).await.unwrap_err(),
        a.queue_len(&long, LONG).await.unwrap_err(),
        a.barrier(&long, 1, LONG).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, Error::Misuse(message) if message.contains("8192")), "{error}");
    }
}

pub(crate) async fn a_value_over_the_limit_is_the_callers_mistake_and_the_limit_itself_is_not<S: Store>(
    World { a, b, .. }: World<S>,
) {
    let largest = Bytes::from(vec![3; VALUE_BYTES]);
    a.set("k", largest.clone(), LONG).await.unwrap();
    let over = Bytes::from(vec![4; largest.len() + 1]);
    let error = a.set("k", over, LONG).await.unwrap_err();
    assert!(matches!(&error, Error::Misuse(message) if message.contains("1048577")), "{error}");
    assert!(b.get("k", LONG).await.unwrap() == largest);
}

pub(crate) async fn the_longest_timeout_is_accepted<S: Store>(World { a, b, .. }: World<S>) {
    let longest = Duration::MAX;
    let both = async { tokio::join!(biased; a.get("k", longest), b.set("k", "v".into(), longest)) };
    let (got, set) = in_time(both).await;
    set.unwrap();
    got.unwrap();
}

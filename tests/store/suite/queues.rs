//! Queues, barriers, and what wakes whom.

use bytes::Bytes;
use kvpipe::Error;
use kvpipe::store::Store;

use super::{SOON, World};
use crate::support::{LONG, in_time};

pub(crate) async fn a_queue_is_first_in_first_out_and_no_key<S: Store>(World { a, b, .. }: World<S>) {
    let values = [Bytes::from("1"), Bytes::new(), vec![3; 100_000].into()];
    for value in &values {
        a.queue_push("q", value.clone(), LONG).await.unwrap();
    }
    a.set("q", "a key of the same name".into(), LONG).await.unwrap();
    assert_eq!(b.queue_len("q", LONG).await.unwrap(), 3);
    assert!(b.delete("q", LONG).await.unwrap());
    assert!(b.queue_pop("q", LONG).await.unwrap() == values[0]);
    assert!(b.try_queue_pop("q", LONG).await.unwrap().unwrap() == values[1]);
    assert!(a.queue_pop("q", LONG).await.unwrap() == values[2]);
    assert_eq!(a.try_queue_pop("q", LONG).await.unwrap(), None);
    assert_eq!(a.queue_len("q", LONG).await.unwrap(), 0);
}

pub(crate) async fn queue_pop_waits_for_a_value<S: Store>(World { a, b, .. }: World<S>) {
    let (popped, pushed) = tokio::join!(biased; a.queue_pop("q", LONG), b.queue_push("q", "v".into(), LONG));
    pushed.unwrap();
    assert_eq!(popped.unwrap(), "v");
}

pub(crate) async fn every_queued_value_comes_out_once_whoever_pops<S: Store>(World { a, b, .. }: World<S>) {
    const EACH: u8 = 10;
    async fn pop<S: Store>(store: &S) -> Vec<u8> {
        let mut popped = Vec::new();
        for _ in 0..EACH {
            popped.extend(store.queue_pop("q", LONG).await.unwrap());
        }
        assert!(popped.is_sorted(), "first in, first out, for each");
        popped
    }
    let pushing = async {
        for value in 0..4 * EACH {
            b.queue_push("q", vec![value].into(), LONG).await.unwrap();
        }
    };
    let all = async { tokio::join!(biased; pop(&a), pop(&a), pop(&b), pop(&b), pushing) };
    let (one, two, three, four, ()) = in_time(all).await;
    let mut popped = [one, two, three, four].concat();
    popped.sort_unstable();
    assert_eq!(popped, (0..4 * EACH).collect::<Vec<_>>());
    assert_eq!(a.queue_len("q", LONG).await.unwrap(), 0);
}

pub(crate) async fn a_queue_that_another_emptied_first_is_waited_for_again<S: Store>(
    World { a, b, .. }: World<S>,
) {
    // Both are woken by the first value, and one of the two takes it.
    let pushing = async {
        b.queue_push("q", "1".into(), LONG).await?;
        while b.queue_len("q", LONG).await? > 0 {
            tokio::task::yield_now().await;
        }
        b.queue_push("q", "2".into(), LONG).await
    };
    let all = async { tokio::join!(biased; a.queue_pop("q", LONG), a.queue_pop("q", LONG), pushing) };
    let (one, two, pushed) = in_time(all).await;
    pushed.unwrap();
    let mut popped = [one.unwrap(), two.unwrap()];
    popped.sort_unstable();
    assert_eq!(popped, ["1", "2"]);
}

pub(crate) async fn wait_and_check_see_a_queue_that_is_not_empty<S: Store>(World { a, b, .. }: World<S>) {
    assert!(!a.check(&["q"], LONG).await.unwrap());
    let (waited, pushed) = tokio::join!(biased; a.wait(&["q"], LONG), b.queue_push("q", "v".into(), LONG));
    pushed.unwrap();
    waited.unwrap();
    assert!(a.check(&["q"], LONG).await.unwrap());
    a.queue_pop("q", LONG).await.unwrap();
    assert!(!b.check(&["q"], LONG).await.unwrap());
}

pub(crate) async fn whatever_makes_a_key_exist_wakes_a_waiter<S: Store>(World { a, b, .. }: World<S>) {
    macro_rules! wakes {
        ($key:literal, $change:expr) => {{
            let (waited, changed) = tokio::join!(biased; a.wait(&[$key], LONG), $change);
            changed.unwrap();
            waited.unwrap();
        }};
    }
    wakes!("set", b.set("set", "v".into(), LONG));
    wakes!("add", b.add("add", 0, LONG));
    wakes!("append", b.append("append", Bytes::new(), LONG));
    let pairs = [("other", "v".into()), ("multi_set", "v".into())];
    wakes!("multi_set", b.multi_set(&pairs, LONG));
    wakes!("compare_set", b.compare_set("compare_set", "".into(), "v".into(), LONG));
    wakes!("queue_push", b.queue_push("queue_push", "v".into(), LONG));
    wakes!("barrier", b.barrier("barrier", 1, LONG));
}

pub(crate) async fn a_compare_set_that_stores_nothing_wakes_nobody<S: Store>(World { a, b, .. }: World<S>) {
    let setting = async {
        b.compare_set("k", "not there".into(), "first".into(), LONG).await?;
        b.set("k", "second".into(), LONG).await
    };
    let (waited, set) = tokio::join!(biased; a.get("k", LONG), setting);
    set.unwrap();
    assert_eq!(waited.unwrap(), "second");
    b.compare_set("missing", "not there".into(), "v".into(), LONG).await.unwrap();
    a.wait(&["missing"], SOON).await.unwrap_err();
}

pub(crate) async fn a_barrier_lets_all_pass_once_the_last_has_arrived<S: Store>(
    World { a, b, .. }: World<S>,
) {
    let arrived = || async { a.wait(&["b"], LONG).await.unwrap() };
    let last = async {
        arrived().await;
        while a.get("b", LONG).await.unwrap() != "2" {
            tokio::task::yield_now().await;
        }
        b.barrier("b", 3, LONG).await
    };
    let all = async { tokio::join!(biased; a.barrier("b", 3, LONG), b.barrier("b", 3, LONG), last) };
    let (one, two, three) = in_time(all).await;
    one.unwrap();
    two.unwrap();
    three.unwrap();
    assert_eq!(a.get("b", LONG).await.unwrap(), "3");
}

pub(crate) async fn who_gave_up_at_a_barrier_stays_counted<S: Store>(World { a, b, .. }: World<S>) {
    let error = a.barrier("b", 2, SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(a.get("b", LONG).await.unwrap(), "1");
    b.barrier("b", 2, LONG).await.unwrap();
}

pub(crate) async fn a_barrier_serves_once<S: Store>(World { a, b, .. }: World<S>) {
    a.barrier("b", 1, LONG).await.unwrap();
    b.barrier("b", 2, LONG).await.unwrap();
    a.barrier("b", 2, LONG).await.unwrap();
    assert!(a.delete("b", LONG).await.unwrap());
    a.barrier("b", 2, SOON).await.unwrap_err();
}

pub(crate) async fn a_barrier_of_none_or_over_junk_is_refused<S: Store>(World { a, .. }: World<S>) {
    for world_size in [0, usize::MAX] {
        let error = a.barrier("b", world_size, LONG).await.unwrap_err();
        assert!(matches!(&error, Error::Misuse(message) if message.contains("b\"")), "{error}");
    }
    assert!(!a.check(&["b"], LONG).await.unwrap());
    a.set("b", "junk".into(), LONG).await.unwrap();
    let error = a.barrier("b", 1, LONG).await.unwrap_err();
    assert!(error.to_string().contains("b\""), "{error}");
    assert_eq!(a.get("b", LONG).await.unwrap(), "junk");
}

//! Several values at a time, and values that depend on what is there.

use std::time::Duration;

use bytes::Bytes;
use kvpipe::Error;
use kvpipe::store::{PrefixStore, Store};

use super::{SOON, VALUE_BYTES, World};
use crate::support::LONG;

pub(crate) async fn append_puts_behind_and_makes_a_key<S: Store>(World { a, b, .. }: World<S>) {
    a.append("k", "one ".into(), LONG).await.unwrap();
    b.append("k", "two ".into(), LONG).await.unwrap();
    a.append("k", vec![b'3'; 100_000].into(), LONG).await.unwrap();
    let expected = [&b"one two "[..], &[b'3'; 100_000]].concat();
    assert!(b.get("k", LONG).await.unwrap() == expected);
}

pub(crate) async fn append_beyond_the_limit_is_refused_and_leaves_the_value<S: Store>(
    World { a, b, .. }: World<S>,
) {
    a.set("k", vec![1; VALUE_BYTES].into(), LONG).await.unwrap();
    let error = a.append("k", "1".into(), LONG).await.unwrap_err();
    assert!(error.to_string().contains("k\""), "{error}");
    assert_eq!(b.get("k", LONG).await.unwrap().len(), VALUE_BYTES);
    b.append("k", Bytes::new(), LONG).await.unwrap();
}

pub(crate) async fn compare_set_stores_only_over_what_was_expected<S: Store>(World { a, b, .. }: World<S>) {
    for (store, expected, desired, answer) in [
        (&a, "", "one", "one"),
        (&b, "", "two", "one"),
        (&b, "one", "two", "two"),
        (&a, "one", "three", "two"),
    ] {
        let answered = store.compare_set("k", expected.into(), desired.into(), LONG).await.unwrap();
        assert_eq!(answered, answer);
    }
    assert_eq!(a.get("k", LONG).await.unwrap(), "two");
}

pub(crate) async fn compare_set_of_a_missing_key_answers_what_was_expected_and_stores_nothing<S: Store>(
    World { a, b, .. }: World<S>,
) {
    assert_eq!(a.compare_set("k", "x".into(), "y".into(), LONG).await.unwrap(), "x");
    assert!(!b.check(&["k"], LONG).await.unwrap());
}

pub(crate) async fn multi_get_waits_for_all_and_keeps_their_order<S: Store>(World { a, b, .. }: World<S>) {
    b.set("2", "two".into(), LONG).await.unwrap();
    let setting = async {
        b.set("3", vec![3; 100_000].into(), LONG).await?;
        b.set("1", Bytes::new(), LONG).await
    };
    let (got, set) = tokio::join!(biased; a.multi_get(&["1", "2", "3", "2"], LONG), setting);
    set.unwrap();
    assert!(got.unwrap() == [Bytes::new(), "two".into(), vec![3; 100_000].into(), "two".into()]);
}

pub(crate) async fn multi_get_of_nothing_is_nothing<S: Store>(World { a, .. }: World<S>) {
    assert!(a.multi_get(&[], LONG).await.unwrap().is_empty());
    a.multi_set(&[], LONG).await.unwrap();
    assert_eq!(a.num_keys(LONG).await.unwrap(), 0);
}

pub(crate) async fn multi_set_stores_all_and_the_last_of_two<S: Store>(World { a, b, .. }: World<S>) {
    let large = Bytes::from(vec![9; 100_000]);
    let pairs = [("a", "1".into()), ("b", large.clone()), ("a", "2".into()), ("c", Bytes::new())];
    a.multi_set(&pairs, LONG).await.unwrap();
    let values = b.multi_get(&["a", "b", "c"], LONG).await.unwrap();
    assert!(values == ["2".into(), large, Bytes::new()]);
}

pub(crate) async fn multi_set_over_a_limit_is_the_callers_mistake_and_stores_nothing<S: Store>(
    World { a, b, .. }: World<S>,
) {
    let half = Bytes::from(vec![9; VALUE_BYTES / 2 + 1]);
    let error = a.multi_set(&[("a", half.clone()), ("b", half)], LONG).await.unwrap_err();
    assert!(matches!(&error, Error::Misuse(message) if message.contains("1048578")), "{error}");
    assert!(!b.check(&["a"], LONG).await.unwrap());
}

pub(crate) async fn keys_are_counted_and_listed_in_order<S: Store>(World { a, b, .. }: World<S>) {
    for key in ["b", "ä", "a/x", "", "a"] {
        a.set(key, "v".into(), LONG).await.unwrap();
    }
    a.queue_push("queue", "v".into(), LONG).await.unwrap();
    assert_eq!(b.num_keys(LONG).await.unwrap(), 5);
    assert_eq!(b.list_keys(LONG).await.unwrap(), ["", "a", "a/x", "b", "ä"]);
    let part = PrefixStore::new("a", b);
    assert_eq!(part.list_keys(LONG).await.unwrap(), ["x"]);
    assert_eq!(part.num_keys(LONG).await.unwrap(), 5, "of the whole store");
}

pub(crate) async fn everything_that_waits_times_out_naming_its_key<S: Store>(World { a, .. }: World<S>) {
    a.set("here", "v".into(), LONG).await.unwrap();
    for timeout in [Duration::ZERO, SOON] {
        let errors = [
            a.get("never", timeout).await.unwrap_err(),
            a.multi_get(&["here", "never"], timeout).await.unwrap_err(),
            a.wait(&["here", "never"], timeout).await.unwrap_err(),
            a.queue_pop("never", timeout).await.unwrap_err(),
            a.barrier("barrier/never", 1000, timeout).await.unwrap_err(),
        ];
        for error in errors {
            let Error::Timeout { awaited, after } = &error else { panic!("{error}") };
            assert_eq!(*after, timeout);
            assert!(awaited.contains("never\""), "{error}");
        }
    }
    assert_eq!(a.get("here", LONG).await.unwrap(), "v");
}

pub(crate) async fn every_refusal_names_its_key<S: Store>(World { a, .. }: World<S>) {
    a.set("junk", "not a number".into(), LONG).await.unwrap();
    let over = Bytes::from(vec![0; VALUE_BYTES + 1]);
    let errors = [
        a.add("junk", 1, LONG).await.unwrap_err(),
        a.set("junk", over.clone(), LONG).await.unwrap_err(),
        a.append("junk", over.clone(), LONG).await.unwrap_err(),
        a.append("junk", over.slice(..VALUE_BYTES), LONG).await.unwrap_err(),
        a.compare_set("junk", over.slice(1..), "v".into(), LONG).await.unwrap_err(),
        a.multi_set(&[("junk", over.clone())], LONG).await.unwrap_err(),
        a.queue_push("junk", over, LONG).await.unwrap_err(),
        a.barrier("junk", 1, LONG).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains("junk\""), "{error}");
    }
    assert_eq!(a.get("junk", LONG).await.unwrap(), "not a number");
}

//! The server's state machine against its model, in random interleavings of many clients.

use bytes::Bytes;
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::{MAGIC, Request};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::model::{Pair, Step};

/// So few that they meet.
fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just("a"), Just("b"), Just("c"), Just("key of more bytes")].prop_map(Bytes::from)
}

/// Often a number, and sometimes so long that the limits matter.
fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => prop_oneof![Just(""), Just("1"), Just("-3"), Just("9223372036854775807"), Just("x")]
            .prop_map(Bytes::from),
        1 => (0usize..40).prop_map(|length| Bytes::from(vec![b'v'; length])),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let keys = || vec(key(), 0..4);
    prop_oneof![
        1 => any::<u32>().prop_map(|nonce| Request::Ping { nonce }),
        4 => (key(), value()).prop_map(|(key, value)| Request::Set { key, value }),
        3 => (key(), value()).prop_map(|(key, value)| Request::Append { key, value }),
        2 => vec((key(), value()), 0..4).prop_map(|pairs| Request::MultiSet { pairs }),
        3 => (key(), value(), value())
            .prop_map(|(key, expected, desired)| Request::CompareSet { key, expected, desired }),
        2 => (key(), -2i64..3).prop_map(|(key, delta)| Request::Add { key, delta }),
        4 => (key(), value()).prop_map(|(key, value)| Request::QueuePush { key, value }),
        4 => key().prop_map(|key| Request::QueuePop { key }),
        1 => key().prop_map(|key| Request::QueueLen { key }),
        1 => key().prop_map(|key| Request::Get { key }),
        1 => keys().prop_map(|keys| Request::MultiGet { keys }),
        1 => keys().prop_map(|keys| Request::Check { keys }),
        8 => keys().prop_map(|keys| Request::Wait { keys }),
        4 => (key(), 0i64..5).prop_map(|(key, world_size)| Request::Barrier { key, world_size }),
        3 => Just(Request::CancelWait),
        6 => key().prop_map(|key| Request::DeleteKey { key }),
        1 => Just(Request::NumKeys),
        1 => Just(Request::ListKeys),
    ]
}

const CLIENTS: usize = 6;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..CLIENTS).prop_map(Step::Connect),
        1 => (0..CLIENTS).prop_map(Step::Stranger),
        2 => (0..CLIENTS).prop_map(Step::Leave),
        2 => (0..CLIENTS, 0usize..2000).prop_map(|(client, bytes)| Step::Begin(client, bytes)),
        1 => (0..CLIENTS, any::<bool>()).prop_map(|(client, right)| {
            Step::Ask(client, Request::Validate { magic: if right { MAGIC } else { 7 } })
        }),
        40 => (0..CLIENTS, request()).prop_map(|(client, request)| Step::Ask(client, request)),
    ]
}

/// Wide ones, in which everything happens, and tight ones, in which much is refused.
fn limits() -> impl Strategy<Value = Limits> {
    any::<bool>().prop_map(|tight| {
        let mut limits = Limits::default();
        (limits.clients, limits.value_bytes) = (CLIENTS - 1, 60);
        if tight {
            (limits.stored_keys, limits.stored_bytes, limits.unfinished_bytes) = (5, 100, 3000);
        }
        limits
    })
}

proptest! {
    #[test]
    fn the_state_machine_does_what_its_model_does(limits in limits(), steps in vec(step(), 0..120)) {
        let mut pair = Pair::new(limits);
        for client in 0..CLIENTS {
            pair.step(Step::Connect(client));
        }
        steps.into_iter().for_each(|step| pair.step(step));
        pair.finish();
    }
}

//! The parsers: the pieces in which bytes come must not matter.

use bytes::{BufMut, Bytes, BytesMut};
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::{
    Expected, MAGIC, ProtocolError, Reply, ReplyParser, Request, RequestParser,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::encoded;

fn parse_all(parser: &mut RequestParser, mut input: &[u8]) -> Result<Vec<Request>, ProtocolError> {
    let mut requests = Vec::new();
    while let Some(request) = parser.parse(&mut input)? {
        requests.push(request);
    }
    assert!(input.is_empty(), "bytes left over");
    Ok(requests)
}

fn parse(bytes: &[u8]) -> Result<Vec<Request>, ProtocolError> {
    parse_with(Limits::default(), bytes)
}

fn parse_with(limits: Limits, bytes: &[u8]) -> Result<Vec<Request>, ProtocolError> {
    parse_all(&mut RequestParser::new(limits), bytes)
}

/// One request of each kind.
fn all_kinds() -> Vec<Request> {
    let keys = || vec![Bytes::from("/k"), Bytes::new(), Bytes::from("/key")];
    vec![
        Request::Validate { magic: MAGIC },
        Request::Ping { nonce: 7 },
        Request::Set { key: "/k".into(), value: "value".into() },
        Request::Set { key: Bytes::new(), value: Bytes::new() },
        Request::Get { key: "/k".into() },
        Request::Add { key: "/n".into(), delta: -1 },
        Request::Check { keys: vec![] },
        Request::Check { keys: keys() },
        Request::Wait { keys: keys() },
        Request::CancelWait,
        Request::DeleteKey { key: "/k".into() },
        Request::Append { key: "/k".into(), value: "more".into() },
        Request::CompareSet { key: "/k".into(), expected: "old".into(), desired: "new".into() },
        Request::CompareSet { key: "/k".into(), expected: Bytes::new(), desired: Bytes::new() },
        Request::MultiGet { keys: keys() },
        Request::MultiSet { pairs: vec![] },
        Request::MultiSet { pairs: keys().into_iter().map(|key| (key.clone(), key)).collect() },
        Request::NumKeys,
        Request::ListKeys,
        Request::QueuePush { key: "/q".into(), value: "value".into() },
        Request::QueuePop { key: "/q".into() },
        Request::QueueLen { key: "/q".into() },
        Request::Barrier { key: "/b".into(), world_size: i64::MAX },
    ]
}

#[test]
fn requests_split_at_any_byte_are_the_same_requests() {
    let bytes = encoded(&all_kinds());
    for split in 0..=bytes.len() {
        let mut parser = RequestParser::new(Limits::default());
        let mut requests = parse_all(&mut parser, &bytes[..split]).unwrap();
        requests.extend(parse_all(&mut parser, &bytes[split..]).unwrap());
        assert_eq!(requests, all_kinds(), "split at {split}");
    }
}

#[test]
fn an_unfinished_request_is_no_request() {
    for request in all_kinds() {
        let bytes = encoded(std::slice::from_ref(&request));
        assert_eq!(parse(&bytes[..bytes.len() - 1]), Ok(vec![]), "{request:?}");
    }
}

#[test]
fn an_unknown_opcode_is_named() {
    for opcode in [19, 20, b'G', 255] {
        let error = parse(&[opcode]).unwrap_err();
        assert_eq!(error, ProtocolError::UnknownOpcode(opcode));
        assert_eq!(error.to_string(), format!("unknown opcode {opcode}"));
    }
}

#[test]
fn a_declared_length_over_its_limit_is_refused_before_its_bytes_come() {
    let limits = Limits::default();
    let key = |length: u64| [&[3][..], &length.to_le_bytes()].concat();
    assert_eq!(parse(&key(8192)), Ok(vec![]));
    for length in [8193, 1 << 62, u64::MAX] {
        let refused = ProtocolError::TooLong { what: "key", length, limit: limits.key_bytes };
        assert_eq!(parse(&key(length)), Err(refused));
    }
    let value = |length: u64| [&[1, 1, 0, 0, 0, 0, 0, 0, 0, b'k'][..], &length.to_le_bytes()].concat();
    assert_eq!(parse(&value(1 << 30)), Ok(vec![]));
    for length in [(1 << 30) + 1, 1 << 62] {
        let refused = ProtocolError::TooLong { what: "value", length, limit: limits.value_bytes };
        assert_eq!(parse(&value(length)), Err(refused));
    }
    for opcode in [5, 6, 10, 11] {
        let keys = |count: u64| [&[opcode][..], &count.to_le_bytes()].concat();
        assert_eq!(parse(&keys(131_072)), Ok(vec![]));
        for count in [131_073, 1 << 62] {
            let refused = ProtocolError::TooManyKeys { count, limit: limits.keys_per_request };
            assert_eq!(parse(&keys(count)), Err(refused));
        }
    }
}

#[test]
fn the_keys_of_one_request_are_bounded_together() {
    let mut limits = Limits::default();
    limits.key_list_bytes = 5;
    let check = |keys: &[&'static str]| {
        let keys = keys.iter().map(|key| Bytes::from(*key)).collect();
        parse_with(limits.clone(), &encoded(&[Request::Check { keys }]))
    };
    check(&["abc", "de"]).unwrap();
    let refused = ProtocolError::TooLong { what: "list of keys", length: 6, limit: 5 };
    assert_eq!(check(&["abc", "def"]), Err(refused));
}

#[test]
fn the_values_of_one_request_are_bounded_together() {
    let mut limits = Limits::default();
    limits.value_bytes = 5;
    let parse = |request| parse_with(limits.clone(), &encoded(&[request]));
    let compare_set = |expected: &'static str, desired: &'static str| Request::CompareSet {
        key: "k".into(),
        expected: expected.into(),
        desired: desired.into(),
    };
    parse(compare_set("abc", "de")).unwrap();
    let refused = ProtocolError::TooLong { what: "value", length: 6, limit: 5 };
    assert_eq!(parse(compare_set("abc", "def")), Err(refused));
    let multi_set = |values: &[&'static str]| Request::MultiSet {
        pairs: values.iter().map(|value| (Bytes::from("k"), Bytes::from(*value))).collect(),
    };
    parse(multi_set(&["abc", "", "de"])).unwrap();
    let refused = ProtocolError::TooLong { what: "list of values", length: 6, limit: 5 };
    assert_eq!(parse(multi_set(&["abc", "", "def"])), Err(refused));
}

#[test]
fn the_keys_of_one_multi_set_are_bounded_together() {
    let mut limits = Limits::default();
    limits.key_list_bytes = 5;
    let multi_set = |keys: &[&'static str]| {
        let pairs = keys.iter().map(|key| (Bytes::from(*key), Bytes::from("value"))).collect();
        parse_with(limits.clone(), &encoded(&[Request::MultiSet { pairs }]))
    };
    multi_set(&["abc", "de"]).unwrap();
    let refused = ProtocolError::TooLong { what: "list of keys", length: 6, limit: 5 };
    assert_eq!(multi_set(&["abc", "def"]), Err(refused));
}

#[test]
fn a_large_value_may_be_put_straight_into_its_place() {
    let requests = [
        Request::Set { key: "k".into(), value: vec![1; 300_000].into() },
        Request::CompareSet {
            key: "k".into(),
            expected: vec![2; 100_000].into(),
            desired: vec![3; 200_000].into(),
        },
        Request::MultiSet {
            pairs: vec![("a".into(), vec![4; 70_000].into()), ("b".into(), vec![5; 90_000].into())],
        },
    ];
    let bytes = encoded(&requests);
    let mut input = &bytes[..];
    let mut parser = RequestParser::new(Limits::default());
    let (mut parsed, mut placed_bytes) = (Vec::new(), 0);
    while !input.is_empty() {
        let (mut piece, rest) = match parser.spare() {
            Some(mut spare) => {
                let (placed, rest) = input.split_at(input.len().min(spare.remaining_mut()).min(50_000));
                spare.put_slice(placed);
                placed_bytes += placed.len();
                (&[][..], rest)
            }
            None => input.split_at(input.len().min(1000)),
        };
        parsed.extend(parse_all(&mut parser, piece).unwrap());
        piece = &[];
        assert_eq!(parser.parse(&mut piece), Ok(None));
        input = rest;
    }
    assert!(parsed == requests);
    assert!(placed_bytes > bytes.len() * 9 / 10, "{placed_bytes} of {}", bytes.len());
}

#[test]
fn what_a_parser_holds_grows_with_what_has_come_and_is_nothing_after_a_request() {
    let part = |byte| Bytes::from(vec![byte; 8000]);
    let requests = [
        Request::Set { key: "k".into(), value: vec![1; 2_000_000].into() },
        Request::Append { key: part(5), value: part(6) },
        Request::CompareSet { key: part(7), expected: part(8), desired: part(9) },
        Request::Add { key: part(10), delta: -1 },
        Request::Wait { keys: vec![vec![2; 1000].into(); 100] },
        Request::MultiSet { pairs: vec![(vec![3; 1000].into(), vec![4; 1000].into()); 100] },
    ];
    for request in requests {
        let bytes = encoded(std::slice::from_ref(&request));
        let mut parser = RequestParser::new(Limits::default());
        for (come, byte) in bytes.iter().enumerate() {
            // A blob counts from its length on; what has come of it and no more, up to a factor.
            let held = parser.held_bytes();
            assert!(held + 10_000 >= come && held <= 5 * come + (64 << 10), "{held} of {come} bytes");
            parser.parse(&mut std::slice::from_ref(byte)).unwrap();
        }
        assert_eq!(parser.held_bytes(), 0);
    }
}

#[test]
fn small_keys_and_values_in_a_list_cost_more_than_their_bytes() {
    let small = || Bytes::from_static(b"s");
    let lists = [
        (Request::Wait { keys: vec![small(); 1000] }, 1000),
        (Request::MultiSet { pairs: vec![(small(), small()); 1000] }, 2000),
    ];
    for (request, small_ones) in lists {
        let bytes = encoded(&[request]);
        let mut parser = RequestParser::new(Limits::default());
        parser.parse(&mut &bytes[..bytes.len() - 1]).unwrap();
        // Each has an allocation and a place in a list.
        assert!(parser.held_bytes() > small_ones * 100, "{}", parser.held_bytes());
    }
}

#[test]
fn a_large_value_that_comes_byte_by_byte_takes_linear_time() {
    // Quadratic, this is 8 x 10^12 steps; linear, it is done at once.
    let request = Request::Set { key: "k".into(), value: vec![1; 4 << 20].into() };
    let mut parser = RequestParser::new(Limits::default());
    let mut parsed = None;
    for byte in encoded(std::slice::from_ref(&request)).iter() {
        assert_eq!(parsed, None);
        parsed = parser.parse(&mut std::slice::from_ref(byte)).unwrap();
    }
    assert!(parsed == Some(request));
}

#[test]
fn the_rest_of_a_large_value_may_be_put_into_its_place_by_a_client_too() {
    let length = (1u64 << 20).to_le_bytes();
    for expected in [Expected::Value, Expected::Popped, Expected::Values(1)] {
        let before: &[u8] = if expected == Expected::Popped { &[1, 0, 0, 0, 0, 0, 0, 0] } else { &[] };
        let mut parser = ReplyParser::new(expected, &Limits::default());
        assert_eq!(parser.parse(&mut &[before, &length, b"x"].concat()[..]), Ok(None));
        assert!(parser.spare().is_some(), "{expected:?}");
    }
}

#[test]
fn a_reply_that_can_not_be_is_refused() {
    let parse = |expected, byte| ReplyParser::new(expected, &Limits::default()).parse(&mut &[byte][..]);
    assert_eq!(parse(Expected::Readiness, 1), Ok(Some(Reply::NotReady)));
    assert_eq!(parse(Expected::Wait, 1), Ok(Some(Reply::WaitCanceled)));
    for expected in [Expected::Readiness, Expected::Wait] {
        assert!(matches!(parse(expected, 2), Err(ProtocolError::WrongReply { .. })));
    }
}

#[test]
fn a_reply_over_the_limits_is_refused_before_it_is_read() {
    let mut limits = Limits::default();
    (limits.stored_keys, limits.value_bytes, limits.stored_bytes) = (3, 10, 15);
    let parse = |expected, numbers: &[u64]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        ReplyParser::new(expected, &limits).parse(&mut &bytes[..])
    };
    assert_eq!(parse(Expected::Keys, &[3]), Ok(None));
    for count in [4, u64::MAX] {
        assert_eq!(parse(Expected::Keys, &[count]), Err(ProtocolError::TooManyKeys { count, limit: 3 }));
    }
    let too_long = |what, length, limit| Err(ProtocolError::TooLong { what, length, limit });
    assert_eq!(parse(Expected::Keys, &[3, 1 << 62]), too_long("list of keys", 1 << 62, 15));
    assert_eq!(parse(Expected::Popped, &[1, 11]), too_long("value", 11, 10));
    assert!(matches!(parse(Expected::Popped, &[u64::MAX]), Err(ProtocolError::WrongReply { .. })));
    assert_eq!(parse(Expected::Values(2), &[11]), too_long("value", 11, 10));
    // One value of eight bytes, and a second that is too long only beside the first.
    assert_eq!(parse(Expected::Values(2), &[8, 0, 8]), too_long("list of values", 16, 15));
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn request() -> impl Strategy<Value = Request> {
    let keys = || vec(bytes(20), 0..8);
    prop_oneof![
        any::<u32>().prop_map(|magic| Request::Validate { magic }),
        any::<u32>().prop_map(|nonce| Request::Ping { nonce }),
        (bytes(20), bytes(300)).prop_map(|(key, value)| Request::Set { key, value }),
        bytes(20).prop_map(|key| Request::Get { key }),
        (bytes(20), any::<i64>()).prop_map(|(key, delta)| Request::Add { key, delta }),
        keys().prop_map(|keys| Request::Check { keys }),
        keys().prop_map(|keys| Request::Wait { keys }),
        Just(Request::CancelWait),
        bytes(20).prop_map(|key| Request::DeleteKey { key }),
        (bytes(20), bytes(300)).prop_map(|(key, value)| Request::Append { key, value }),
        (bytes(20), bytes(300), bytes(300)).prop_map(|(key, expected, desired)| Request::CompareSet {
            key,
            expected,
            desired
        }),
        keys().prop_map(|keys| Request::MultiGet { keys }),
        vec((bytes(20), bytes(300)), 0..8).prop_map(|pairs| Request::MultiSet { pairs }),
        Just(Request::NumKeys),
        Just(Request::ListKeys),
        (bytes(20), bytes(300)).prop_map(|(key, value)| Request::QueuePush { key, value }),
        bytes(20).prop_map(|key| Request::QueuePop { key }),
        bytes(20).prop_map(|key| Request::QueueLen { key }),
        (bytes(20), any::<i64>()).prop_map(|(key, world_size)| Request::Barrier { key, world_size }),
    ]
}

fn reply() -> impl Strategy<Value = (Expected, Reply)> {
    prop_oneof![
        any::<u32>().prop_map(|nonce| (Expected::Pong, Reply::Pong(nonce))),
        bytes(300).prop_map(|value| (Expected::Value, Reply::Value(value))),
        any::<i64>().prop_map(|number| (Expected::Number, Reply::Number(number))),
        Just((Expected::Readiness, Reply::Ready)),
        Just((Expected::Readiness, Reply::NotReady)),
        Just((Expected::Wait, Reply::StopWaiting)),
        Just((Expected::Wait, Reply::WaitCanceled)),
        vec(bytes(300), 0..8).prop_map(|values| (Expected::Values(values.len()), Reply::Values(values))),
        (1..=i64::MAX as u64, bytes(300))
            .prop_map(|(length, value)| (Expected::Popped, Reply::Popped { length, value })),
        Just((Expected::Popped, Reply::QueueEmpty)),
        vec(bytes(300), 0..8).prop_map(|keys| (Expected::Keys, Reply::Keys(keys))),
    ]
}

/// `bytes` in pieces of the given lengths, round and round.
fn pieces<'a>(mut bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let length = (*lengths.next()?).min(bytes.len());
        let (piece, rest) = bytes.split_at(length);
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

proptest! {
    #[test]
    fn any_requests_in_any_pieces_come_out_as_they_went_in(
        requests in vec(request(), 0..12),
        lengths in vec(1usize..40, 1..8),
    ) {
        let mut parser = RequestParser::new(Limits::default());
        let mut parsed = Vec::new();
        for piece in pieces(&encoded(&requests), &lengths) {
            parsed.extend(parse_all(&mut parser, piece).unwrap());
        }
        prop_assert_eq!(parsed, requests);
    }

    #[test]
    fn any_bytes_give_the_same_in_any_pieces(
        opcode in 0u8..20,
        tail in vec(prop_oneof![Just(0u8), 0u8..4, any::<u8>()], 0..80),
        lengths in vec(1usize..40, 1..8),
    ) {
        let bytes = [&[opcode][..], &tail].concat();
        let whole = parse(&bytes);
        let mut parser = RequestParser::new(Limits::default());
        let in_pieces: Result<Vec<Vec<Request>>, ProtocolError> =
            pieces(&bytes, &lengths).map(|piece| parse_all(&mut parser, piece)).collect();
        prop_assert_eq!(whole, in_pieces.map(|requests| requests.concat()));
    }

    #[test]
    fn any_reply_in_any_pieces_comes_out_as_it_went_in(
        (expected, reply) in reply(),
        lengths in vec(1usize..40, 1..8),
    ) {
        let mut bytes = BytesMut::new();
        reply.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), reply.encoded_bytes());
        let mut parser = ReplyParser::new(expected, &Limits::default());
        // A reply without a byte is there before the first one.
        let mut parsed = parser.parse(&mut &[][..]).unwrap();
        for mut piece in pieces(&bytes, &lengths) {
            prop_assert_eq!(parsed, None);
            parsed = parser.parse(&mut piece).unwrap();
            prop_assert!(piece.is_empty());
        }
        prop_assert_eq!(parsed, Some(reply));
    }
}

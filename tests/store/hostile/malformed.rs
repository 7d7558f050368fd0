//! Requests that are too long, cut off or made up.

use kvpipe::store::tcp::protocol::Request;
use kvpipe::store::{Limits, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::others_proceed;
use super::shapes::{Shape, requests};
use crate::support::{LONG, Raw, connect, encoded, in_time, server, server_with};

#[tokio::test]
async fn a_length_over_its_limit_in_any_field_of_any_operation_closes_its_own_connection_only() {
    let server = server().await;
    let mut tried = 0;
    for request in requests() {
        let Shape { bytes, fields } = Shape::of(&request);
        for (field, offset) in fields {
            let limit = field.limit(&Limits::default());
            for length in [limit + 1, u64::from(u32::MAX), 1 << 62, 1 << 63, u64::MAX] {
                let mut hostile = Raw::validated(server.local_addr()).await;
                hostile.write(&bytes[..offset]).await;
                hostile.write(&length.to_le_bytes()).await;
                hostile.expect_closed().await;
                tried += 1;
            }
        }
    }
    assert_eq!(server.stats().refused, tried);
    others_proceed(&server).await;
}

#[tokio::test]
async fn a_request_cut_off_at_any_byte_changes_nothing_and_has_no_reply() {
    let server = server().await;
    let store = connect(server.local_addr()).await;
    store.set("key", "before".into(), LONG).await.unwrap();
    let before = (server.stats().keys, server.stats().queued, server.stats().stored_bytes);
    for request in requests().into_iter().skip(1) {
        let bytes = encoded(std::slice::from_ref(&request));
        for length in 0..bytes.len() {
            let mut hostile = Raw::validated(server.local_addr()).await;
            hostile.write(&bytes[..length]).await;
            hostile.0.shutdown().await.unwrap();
            let mut replies = Vec::new();
            in_time(hostile.0.read_to_end(&mut replies)).await.unwrap();
            assert!(replies.is_empty(), "{request:?} cut off after {length} bytes: {replies:?}");
        }
    }
    let after = server.stats();
    assert_eq!((after.keys, after.queued, after.stored_bytes), before);
    assert_eq!(store.get("key", LONG).await.unwrap(), "before");
    // Leaving midway is no offence.
    assert_eq!(after.refused, 0);
}

#[tokio::test]
async fn whatever_comes_before_validate_closes_the_connection_and_is_not_carried_out() {
    let server = server().await;
    for request in requests().into_iter().skip(1) {
        let mut hostile = Raw::connect(server.local_addr()).await;
        hostile.send(&[request]).await;
        hostile.expect_closed().await;
    }
    let stats = server.stats();
    assert_eq!((stats.keys, stats.queued, stats.requests), (0, 0, 0));
}

/// Marsaglia's generator: the same frames in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// A request, whole or with a few bytes wrong or its end missing, or bytes that mean nothing.
    fn frame(&mut self) -> Vec<u8> {
        if self.below(8) == 0 {
            return (0..self.below(64)).map(|_| self.next() as u8).collect();
        }
        let requests = requests();
        let mut bytes = encoded(&requests[1 + self.below(requests.len() - 1)..][..1]).to_vec();
        for _ in 0..self.below(4).saturating_sub(1) {
            let at = self.below(bytes.len());
            bytes[at] = self.next() as u8;
        }
        if self.below(8) == 0 {
            bytes.truncate(self.below(bytes.len() + 1));
        }
        bytes
    }
}

#[tokio::test]
async fn ten_thousand_random_frames_harm_nobody_and_leave_no_more_than_the_limits() {
    const FRAMES: usize = 10_000;
    const FRAMES_A_CONNECTION: usize = 4;
    let mut limits = Limits::default();
    (limits.stored_keys, limits.stored_bytes) = (100, 10_000);
    let server = server_with(limits.clone()).await;
    let store = connect(server.local_addr()).await;
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for connection in 0..FRAMES / FRAMES_A_CONNECTION {
        let mut hostile = Raw::validated(server.local_addr()).await;
        let frames: Vec<u8> = (0..FRAMES_A_CONNECTION).flat_map(|_| random.frame()).collect();
        // The server may have closed already.
        let _ = hostile.0.write_all(&frames).await;
        let _ = hostile.0.shutdown().await;
        let _ = in_time(hostile.0.read_to_end(&mut Vec::new())).await;
        let count = store.add("good", 1, LONG).await.unwrap();
        assert_eq!(count, connection as i64 + 1);
        // What hostile clients have stored may have taken all room for new keys: theirs to fill.
        let stats = server.stats();
        assert!(stats.keys + stats.queued <= limits.stored_keys && stats.stored_bytes <= limits.stored_bytes);
    }
    // Both kinds came: those that it carried out, and those that it did not take.
    let stats = server.stats();
    let taken = stats.requests - 3 * (FRAMES / FRAMES_A_CONNECTION) as u64;
    assert!(stats.refused > 1000 && taken > 2000, "{stats:?}");
    crate::support::until(|| server.clients() == 1).await;
    assert_eq!(server.waiting(), 0);
}

#[tokio::test]
async fn who_finishes_its_direction_still_gets_its_replies_and_then_the_end() {
    let server = server().await;
    let mut client = Raw::validated(server.local_addr()).await;
    client.send(&[Request::Add { key: "/n".into(), delta: 7 }, Request::Ping { nonce: 1 }]).await;
    client.0.shutdown().await.unwrap();
    client.expect(&[7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn who_resets_its_connection_midway_is_forgotten() {
    let server = server().await;
    for request in requests().into_iter().skip(1) {
        let mut client = Raw::validated(server.local_addr()).await;
        let bytes = encoded(&[Request::Wait { keys: vec!["/never".into()] }, request]);
        client.write(&bytes[..bytes.len() - 1]).await;
        socket2::SockRef::from(&client.0).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
    crate::support::until(|| server.clients() == 0).await;
    assert_eq!(server.waiting(), 0);
    others_proceed(&server).await;
}

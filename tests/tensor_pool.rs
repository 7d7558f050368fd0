//! The buffer pool through the public API.

use std::thread;

use bytes::Bytes;
use kvpipe::tensor::{ALIGNMENT, BufferMut, BufferPool};
use proptest::prelude::*;

const MIB: usize = 1 << 20;

/// Puts one idle buffer of each length into the pool, in this order.
fn stock(pool: &BufferPool, lengths: &[usize]) {
    let live: Vec<_> = lengths.iter().map(|&len| pool.take(len).unwrap()).collect();
    live.into_iter().for_each(drop);
}

#[test]
fn a_dropped_payload_serves_again() {
    let pool = BufferPool::new(8 * MIB);
    let address = {
        let payload = pool.take(MIB).unwrap().freeze();
        payload.as_ptr().addr()
    };
    assert_eq!(pool.take(MIB).unwrap().as_ptr().addr(), address);
    assert_eq!((pool.stats().hits, pool.stats().misses), (1, 1));
}

#[test]
fn a_buffer_stays_out_until_its_last_slice_is_dropped() {
    let pool = BufferPool::new(8 * MIB);
    let payload = pool.take(MIB).unwrap().freeze();
    let slice = payload.slice(5..6);
    drop(payload);
    assert_eq!((pool.stats().idle_buffers, pool.stats().live_buffers), (0, 1));
    drop(slice);
    assert_eq!((pool.stats().idle_buffers, pool.stats().live_buffers), (1, 0));
    assert_eq!((pool.stats().idle_bytes, pool.stats().live_bytes), (MIB, 0));
}

#[test]
fn a_buffer_dropped_unfrozen_comes_back() {
    let pool = BufferPool::new(8 * MIB);
    drop(pool.take(MIB).unwrap());
    assert_eq!(pool.stats().idle_buffers, 1);
}

#[test]
fn the_smallest_sufficient_buffer_is_taken() {
    let pool = BufferPool::new(64 * MIB);
    stock(&pool, &[4 * MIB, MIB, 2 * MIB]);
    let taken = pool.take(2 * MIB - 1).unwrap();
    assert_eq!(pool.stats().live_bytes, 2 * MIB);
    drop(taken);
}

#[test]
fn a_buffer_more_than_half_again_as_large_is_left_alone() {
    let pool = BufferPool::new(64 * MIB);
    stock(&pool, &[3 * MIB]);
    let small = pool.take(2 * MIB - 1).unwrap();
    assert_eq!(pool.stats().hits, 0);
    let fits = pool.take(2 * MIB).unwrap();
    assert_eq!(pool.stats().hits, 1);
    drop((small, fits));
}

#[test]
fn lengths_that_differ_little_share_a_buffer_either_way_round() {
    let pool = BufferPool::new(64 * MIB);
    drop(pool.take(MIB + 1).unwrap());
    drop(pool.take(MIB + 5000).unwrap());
    assert_eq!(pool.stats().hits, 1);
}

#[test]
fn idle_bytes_stay_within_the_bound_and_the_longest_idle_goes_first() {
    let pool = BufferPool::new(3 * MIB);
    stock(&pool, &[MIB, 2 * MIB, MIB]);
    assert_eq!((pool.stats().idle_bytes, pool.stats().idle_buffers), (3 * MIB, 2));
    stock(&pool, &[3 * MIB]);
    assert_eq!((pool.stats().idle_bytes, pool.stats().idle_buffers), (3 * MIB, 1));
}

#[test]
fn a_buffer_larger_than_the_bound_is_freed_and_evicts_nothing() {
    let pool = BufferPool::new(2 * MIB);
    stock(&pool, &[MIB, 4 * MIB]);
    assert_eq!((pool.stats().idle_bytes, pool.stats().live_bytes), (MIB, 0));
}

#[test]
fn a_pool_of_zero_bytes_keeps_nothing() {
    let pool = BufferPool::new(0);
    stock(&pool, &[0, 1, MIB]);
    assert_eq!((pool.stats().idle_buffers, pool.stats().live_buffers), (0, 0));
}

#[test]
fn the_number_of_idle_buffers_is_bounded_too() {
    let pool = BufferPool::new(usize::MAX);
    stock(&pool, &[4096; 1030]);
    assert_eq!(pool.stats().idle_buffers, 1024);
}

#[test]
fn small_buffers_take_what_they_ask_for_and_are_not_kept() {
    let pool = BufferPool::new(MIB);
    let buffers = [0, 1, 100].map(|len| pool.take(len).unwrap());
    assert_eq!(pool.stats().live_bytes, 101);
    drop(buffers);
    assert_eq!((pool.stats().live_buffers, pool.stats().idle_buffers), (0, 0));
}

#[test]
fn an_empty_buffer_is_given_back_when_it_is_frozen() {
    let pool = BufferPool::new(MIB);
    let payload = pool.take(0).unwrap().freeze();
    assert!(payload.is_empty());
    assert_eq!(pool.stats().live_buffers, 0);
}

#[test]
fn a_fresh_buffer_is_zero() {
    let pool = BufferPool::new(MIB);
    assert!(pool.take(MIB).unwrap().iter().all(|&byte| byte == 0));
    assert!(BufferMut::zeroed(MIB).unwrap().iter().all(|&byte| byte == 0));
}

/// Otherwise every fresh buffer would be written twice. Looks at the process's resident pages, since
/// nothing else can tell; the margin is far above what the other tests here touch.
#[cfg(target_os = "linux")]
#[test]
fn a_fresh_buffer_has_no_pages_until_it_is_written() {
    fn resident_pages() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse().unwrap()
    }
    let before = resident_pages();
    let buffer = BufferPool::new(0).take(512 * MIB).unwrap();
    assert!(resident_pages() < before + buffer.len() / 2 / 4096);
}

#[test]
fn a_payload_outlives_its_pool() {
    let pool = BufferPool::new(MIB);
    let mut buffer = pool.take(MIB).unwrap();
    buffer.fill(3);
    let payload = buffer.freeze();
    drop(pool);
    assert!(payload.iter().all(|&byte| byte == 3));
}

#[test]
fn a_length_that_no_machine_has_is_an_error_and_leaves_the_counts() {
    let pool = BufferPool::new(MIB);
    for absurd in [usize::MAX, isize::MAX as usize, isize::MAX as usize / 2] {
        assert!(pool.take(absurd).is_err(), "{absurd}");
    }
    assert_eq!(pool.stats(), BufferPool::new(0).stats());
}

#[test]
fn threads_share_a_pool() {
    let pool = BufferPool::new(4 * MIB);
    thread::scope(|scope| {
        for tag in 0..4_u8 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..200 {
                    let mut buffer = pool.take(8192 + 4096 * (round % 5)).unwrap();
                    buffer.fill(tag);
                    let payload = buffer.freeze();
                    let clone = payload.clone();
                    drop(payload);
                    assert!(clone.iter().all(|&byte| byte == tag));
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.live_bytes, stats.live_buffers), (0, 0));
    assert_eq!(stats.hits + stats.misses, 800);
}

#[derive(Clone, Debug)]
enum Operation {
    Take { len: usize, freeze: bool },
    Drop { which: usize },
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (0..100_000_usize, any::<bool>()).prop_map(|(len, freeze)| Operation::Take { len, freeze }),
        (0..64_usize).prop_map(|which| Operation::Drop { which }),
    ]
}

enum Live {
    Filling(BufferMut),
    Frozen(Bytes),
}

impl Live {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Filling(buffer) => buffer,
            Self::Frozen(bytes) => bytes,
        }
    }
}

proptest! {
    #[test]
    fn live_buffers_never_alias_and_idle_bytes_never_exceed_the_bound(
        bound in 0..300_000_usize,
        operations in prop::collection::vec(operation(), 1..80),
    ) {
        let pool = BufferPool::new(bound);
        let mut live: Vec<(u8, Live)> = Vec::new();
        for (tag, operation) in operations.into_iter().enumerate() {
            match operation {
                Operation::Take { len, freeze } => {
                    let mut buffer = pool.take(len).unwrap();
                    prop_assert_eq!(buffer.len(), len);
                    buffer.fill(tag as u8);
                    let buffer = if freeze { Live::Frozen(buffer.freeze()) } else { Live::Filling(buffer) };
                    if len > 0 {
                        prop_assert_eq!(buffer.bytes().as_ptr().addr() % ALIGNMENT, 0);
                    }
                    live.push((tag as u8, buffer));
                }
                Operation::Drop { which } if !live.is_empty() => {
                    let (tag, buffer) = live.swap_remove(which % live.len());
                    prop_assert!(buffer.bytes() == vec![tag; buffer.bytes().len()]);
                }
                Operation::Drop { .. } => {}
            }
            let stats = pool.stats();
            prop_assert!(stats.idle_bytes <= bound, "{} > {bound}", stats.idle_bytes);
            prop_assert!(stats.live_bytes >= live.iter().map(|(_, buffer)| buffer.bytes().len()).sum());
        }
        for (tag, buffer) in live.drain(..) {
            prop_assert!(buffer.bytes() == vec![tag; buffer.bytes().len()]);
        }
        prop_assert_eq!((pool.stats().live_bytes, pool.stats().live_buffers), (0, 0));
    }
}

#[test]
fn before_it_allocates_it_frees_what_is_idle_beyond_the_bound() {
    let pool = BufferPool::new(1 << 20);
    let buffers: Vec<_> = [100_000, 100_000, 50_000].map(|len| pool.take(len).unwrap()).into();
    drop(buffers);
    assert_eq!(pool.stats().idle_buffers, 3);
    drop(pool.take_beside(50_000, 0).unwrap());
    assert_eq!(pool.stats().idle_buffers, 3, "what serves again costs no memory");
    let fresh = pool.take_beside(200_000, 120_000).unwrap();
    let stats = pool.stats();
    assert!(stats.idle_bytes <= 120_000, "{stats:?}");
    assert!(stats.idle_buffers >= 1, "no more than need be: {stats:?}");
    drop(fresh);
}

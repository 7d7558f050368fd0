//! Every collective operation, type and reduction against a naive reference.

use half::{bf16, f16};

use crate::ranks::*;
use kvpipe_fake_nccl::api::*;

const SIZES: [usize; 4] = [0, 1, 7, 1001];
const RANKS: usize = 4;

/// Values that every type holds exactly, and so do their sums and products.
fn value(rank: usize, index: usize) -> i64 {
    1 + ((rank * 5 + index * 7 + index / 5) % 3) as i64
}

fn encode(dtype: u32, value: f64) -> Vec<u8> {
    match dtype {
        0 => (value as i8).to_ne_bytes().to_vec(),
        1 => (value as u8).to_ne_bytes().to_vec(),
        2 => (value as i32).to_ne_bytes().to_vec(),
        3 => (value as u32).to_ne_bytes().to_vec(),
        4 => (value as i64).to_ne_bytes().to_vec(),
        5 => (value as u64).to_ne_bytes().to_vec(),
        6 => f16::from_f64(value).to_ne_bytes().to_vec(),
        7 => (value as f32).to_ne_bytes().to_vec(),
        8 => value.to_ne_bytes().to_vec(),
        _ => bf16::from_f64(value).to_ne_bytes().to_vec(),
    }
}

fn encode_all(dtype: u32, values: impl Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(|value| encode(dtype, value)).collect()
}

fn input(dtype: u32, rank: usize, count: usize) -> Vec<u8> {
    encode_all(dtype, (0..count).map(|index| value(rank, index) as f64))
}

fn reduced(reduction: u32, index: usize) -> f64 {
    let values = (0..RANKS).map(|rank| value(rank, index));
    match reduction {
        0 => values.sum::<i64>() as f64,
        1 => values.product::<i64>() as f64,
        2 => values.max().unwrap() as f64,
        3 => values.min().unwrap() as f64,
        _ => values.sum::<i64>() as f64 / RANKS as f64,
    }
}

/// What integers make of it.
fn fitting(dtype: u32, value: f64) -> f64 {
    if dtype <= 5 { value.trunc() } else { value }
}

#[test]
fn reductions_of_every_type_are_right() {
    let alone = alone("");
    ranks(RANKS, |rank, comm| {
        let stream = Stream::new();
        for (dtype, reduction) in (0..10).flat_map(|dtype| (0..5).map(move |reduction| (dtype, reduction))) {
            let count = SIZES[((dtype + reduction) % 4) as usize];
            let source = Buffer::new(&input(dtype, rank, count));
            let target = Buffer::new(&vec![0xff; source.bytes().len()]);
            let (from, to) = (source.pointer(), target.pointer());
            ok(unsafe { ncclAllReduce(from, to, count, dtype, reduction, comm.0, stream.0) });
            stream.synchronize();
            let expected = (0..count).map(|index| fitting(dtype, reduced(reduction, index)));
            assert_eq!(target.bytes(), encode_all(dtype, expected), "type {dtype}, reduction {reduction}");
        }
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn half_types_are_rounded_once() {
    let _alone = alone("");
    ranks(3, |_, comm| {
        let stream = Stream::new();
        // In float16, 2048 + 1 is 2048, but 2048 + 1 + 1 is 2050; the third rank's part is in the middle.
        for (dtype, large) in [(6, 2048.0), (9, 256.0)] {
            let mut rank = -1;
            ok(unsafe { ncclCommUserRank(comm.0, &mut rank) });
            let buffer = Buffer::new(&encode(dtype, if rank == 0 { large } else { 1.0 }));
            ok(unsafe { ncclAllReduce(buffer.pointer(), buffer.pointer(), 1, dtype, SUM, comm.0, stream.0) });
            stream.synchronize();
            assert_eq!(buffer.bytes(), encode(dtype, large + 2.0));
        }
        comm.destroy();
    });
}

#[test]
fn a_reduction_is_the_roots_alone() {
    let alone = alone("");
    ranks(RANKS, |rank, comm| {
        let stream = Stream::new();
        for (root, count) in (0..RANKS).zip(SIZES) {
            let source = Buffer::new(&input(FLOAT32, rank, count));
            let untouched = vec![7; 4 * count];
            let target = Buffer::new(&untouched);
            let (from, to) = (source.pointer(), target.pointer());
            // Nobody but the root needs a target.
            let to = if rank == root { to } else { std::ptr::null_mut() };
            ok(unsafe { ncclReduce(from, to, count, FLOAT32, 2, root as i32, comm.0, stream.0) });
            stream.synchronize();
            let expected = encode_all(FLOAT32, (0..count).map(|index| reduced(2, index)));
            assert_eq!(target.bytes(), if rank == root { expected } else { untouched });
        }
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn a_broadcast_is_the_roots_to_all() {
    let alone = alone("");
    ranks(RANKS, |rank, comm| {
        let stream = Stream::new();
        for (root, count) in (0..RANKS).zip(SIZES) {
            let source = Buffer::new(&pattern(rank, count));
            let target = Buffer::new(&vec![0; count]);
            let from = if rank == root { source.pointer() } else { std::ptr::null_mut() };
            ok(unsafe { ncclBroadcast(from, target.pointer(), count, INT8, root as i32, comm.0, stream.0) });
            stream.synchronize();
            assert_eq!(target.bytes(), pattern(root, count));
        }
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn what_all_have_is_gathered_in_order_also_in_place() {
    let alone = alone("");
    ranks(RANKS, |rank, comm| {
        let stream = Stream::new();
        for count in SIZES {
            let all: Vec<u8> = (0..RANKS).flat_map(|rank| pattern(rank, count)).collect();
            let source = Buffer::new(&pattern(rank, count));
            let target = Buffer::new(&vec![0; RANKS * count]);
            ok(unsafe { ncclAllGather(source.pointer(), target.pointer(), count, UINT8, comm.0, stream.0) });
            stream.synchronize();
            assert_eq!(target.bytes(), all);

            let mut own = vec![0; RANKS * count];
            own[rank * count..][..count].copy_from_slice(&pattern(rank, count));
            let place = Buffer::new(&own);
            let mine = (place.0 + (rank * count) as u64) as *const std::ffi::c_void;
            ok(unsafe { ncclAllGather(mine, place.pointer(), count, UINT8, comm.0, stream.0) });
            stream.synchronize();
            assert_eq!(place.bytes(), all);
        }
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn each_gets_its_share_of_what_is_reduced_also_in_place() {
    let alone = alone("");
    ranks(RANKS, |rank, comm| {
        let stream = Stream::new();
        for count in SIZES {
            let expected = (rank * count..(rank + 1) * count).map(|index| reduced(0, index));
            let expected = encode_all(FLOAT32, expected);
            let source = Buffer::new(&input(FLOAT32, rank, RANKS * count));
            let target = Buffer::new(&vec![0; 4 * count]);
            let mine = (source.0 + (4 * rank * count) as u64) as *mut std::ffi::c_void;
            let from = source.pointer();
            ok(unsafe { ncclReduceScatter(from, target.pointer(), count, FLOAT32, SUM, comm.0, stream.0) });
            ok(unsafe { ncclReduceScatter(from, mine, count, FLOAT32, SUM, comm.0, stream.0) });
            stream.synchronize();
            assert_eq!(target.bytes(), expected);
            assert_eq!(source.bytes()[4 * rank * count..][..4 * count], expected);
        }
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn one_rank_alone_reduces_with_itself() {
    let alone = alone("");
    ranks(1, |_, comm| {
        let (stream, source, target) = (Stream::new(), Buffer::new(&[3]), Buffer::new(&[0]));
        let (from, to) = (source.pointer(), target.pointer());
        ok(unsafe { ncclAllReduce(from, to, 1, UINT8, SUM, comm.0, stream.0) });
        stream.synchronize();
        assert_eq!(target.bytes(), [3]);
        comm.destroy();
    });
    alone.is_clean();
}

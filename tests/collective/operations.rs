//! Every operation, in all its forms, against a naive reference, over real connections.

use half::{bf16, f16};
use kvpipe::collective::{ProcessGroup, ReduceOp};
use kvpipe::tensor::{Element, TensorMut};
use kvpipe::{DType, Tensor};
use proptest::prelude::*;

use crate::ranks::{config, each, group};

/// A dtype with exact small numbers.
trait Number: Element {
    fn of(number: i64) -> Self;
}

macro_rules! numbers {
    ($($number:ty: $of:expr;)*) => {$(
        impl Number for $number {
            fn of(number: i64) -> Self {
                let of: fn(i64) -> Self = $of;
                of(number)
            }
        }
    )*};
}

numbers! {
    u8: |number| number as u8;
    i8: |number| number as i8;
    u16: |number| number as u16;
    i16: |number| number as i16;
    u32: |number| number as u32;
    i32: |number| number as i32;
    u64: |number| number as u64;
    i64: |number| number;
    f16: |number| f16::from_f64(number as f64);
    bf16: |number| bf16::from_f64(number as f64);
    f32: |number| number as f32;
    f64: |number| number as f64;
}

/// What rank `rank` has at `index`: so small that sums and products of eight are exact in every dtype.
fn number(rank: usize, index: usize) -> i64 {
    [1, 0, 2, 1, 1, 3, 1][(rank * 5 + index * 3) % 7].min(if index.is_multiple_of(3) { 1 } else { 3 })
}

/// So many rows of two elements, of a tensor of rank `rank` that begins at row `first`.
fn rows<T: Number>(rank: usize, first: usize, count: usize) -> Vec<T> {
    (2 * first..2 * (first + count)).map(|index| T::of(number(rank, index))).collect()
}

fn tensor<T: Number>(elements: &[T]) -> Tensor {
    Tensor::from_slice([elements.len() / 2, 2], elements).unwrap()
}

fn exclusive<T: Number>(elements: &[T]) -> TensorMut {
    TensorMut::from_slice([elements.len() / 2, 2], elements).unwrap()
}

/// Memory that holds something else.
fn used<T: Number>(rows: usize) -> TensorMut {
    exclusive(&vec![T::of(9); 2 * rows])
}

/// The reduction of the rows of all ranks.
fn reduced<T: Number>(op: ReduceOp, size: usize, first: usize, count: usize) -> Vec<T> {
    let reduce = |index| {
        let numbers = (0..size).map(|rank| number(rank, index));
        match op {
            ReduceOp::Sum => numbers.sum(),
            ReduceOp::Prod => numbers.product(),
            ReduceOp::Min => numbers.min().unwrap(),
            ReduceOp::Max => numbers.max().unwrap(),
            // Exact or cut off, as integers are; the others have it from the reference of the library's
            // own tests.
            ReduceOp::Avg => numbers.sum::<i64>() / size as i64,
        }
    };
    (2 * first..2 * (first + count)).map(|index| T::of(reduce(index))).collect()
}

fn all_rows<T: Number>(counts: &[usize]) -> Vec<T> {
    counts.iter().enumerate().flat_map(|(rank, count)| rows::<T>(rank, 0, *count)).collect()
}

/// A case: so many rows of each rank, and a root.
#[derive(Clone, Debug)]
struct Case {
    counts: Vec<usize>,
    root: usize,
    op: ReduceOp,
}

async fn reductions<T: Number>(group: &ProcessGroup, Case { counts, root, op }: &Case) {
    let (rank, size, count) = (group.rank(), group.size(), counts[0]);
    let own = rows::<T>(rank, 0, count);
    let expected = tensor(&reduced::<T>(*op, size, 0, count));
    assert_eq!(group.all_reduce(&tensor(&own), *op).await.unwrap(), expected);
    assert_eq!(group.all_reduce_into(&tensor(&own), used::<T>(count), *op).await.unwrap().freeze(), expected);
    assert_eq!(group.all_reduce_in_place(exclusive(&own), *op).await.unwrap().freeze(), expected);

    let at_root = rank == *root;
    let result = group.reduce(&tensor(&own), *op, *root).await.unwrap();
    assert_eq!(result, at_root.then(|| expected.clone()));
    let memory = at_root.then(|| used::<T>(count));
    let result = group.reduce_into(&tensor(&own), memory, *op, *root).await.unwrap();
    assert_eq!(result.map(TensorMut::freeze), at_root.then(|| expected.clone()));
    let result = group.reduce_in_place(exclusive(&own), *op, *root).await.unwrap().freeze();
    assert_eq!(result, if at_root { expected } else { tensor(&own) });

    // Equal parts, and parts as the counts say.
    let own = tensor(&rows::<T>(rank, 0, count * size));
    let expected = tensor(&reduced::<T>(*op, size, rank * count, count));
    assert_eq!(group.reduce_scatter(&own, *op).await.unwrap(), expected);
    assert_eq!(group.reduce_scatter_into(&own, used::<T>(count), *op).await.unwrap().freeze(), expected);
    let memory = exclusive(&rows::<T>(rank, 0, count * size));
    assert_eq!(group.reduce_scatter_in_place(memory, *op).await.unwrap(), expected);
    let all = counts.iter().sum();
    let own = tensor(&rows::<T>(rank, 0, all));
    let expected = tensor(&reduced::<T>(*op, size, counts[..rank].iter().sum(), counts[rank]));
    assert_eq!(group.reduce_scatterv(&own, counts, *op).await.unwrap(), expected);
    let memory = used::<T>(counts[rank]);
    assert_eq!(group.reduce_scatterv_into(&own, counts, memory, *op).await.unwrap().freeze(), expected);
    let memory = exclusive(&rows::<T>(rank, 0, all));
    assert_eq!(group.reduce_scatterv_in_place(memory, counts, *op).await.unwrap(), expected);
}

async fn movements<T: Number>(group: &ProcessGroup, Case { counts, root, .. }: &Case) {
    let (rank, size, count, root) = (group.rank(), group.size(), counts[0], *root);
    let at_root = rank == root;
    let own = tensor(&rows::<T>(rank, 0, count));

    let expected = tensor(&rows::<T>(root, 0, count));
    let given = at_root.then_some(&own);
    assert_eq!(group.broadcast(T::DTYPE, [count, 2], given, root).await.unwrap(), expected);
    assert_eq!(group.broadcast_into(given, used::<T>(count), root).await.unwrap().freeze(), expected);
    let memory = exclusive(&rows::<T>(rank, 0, count));
    assert_eq!(group.broadcast_in_place(memory, root).await.unwrap().freeze(), expected);

    let expected = tensor(&all_rows::<T>(&vec![count; size]));
    assert_eq!(group.all_gather(&own).await.unwrap(), expected);
    assert_eq!(group.all_gather_into(&own, used::<T>(count * size)).await.unwrap().freeze(), expected);
    let mut memory = vec![T::of(9); 2 * count * size];
    memory[2 * count * rank..][..2 * count].copy_from_slice(&rows::<T>(rank, 0, count));
    assert_eq!(group.all_gather_in_place(exclusive(&memory)).await.unwrap().freeze(), expected);
    assert_eq!(group.gather(&own, root).await.unwrap(), at_root.then(|| expected.clone()));
    let memory = at_root.then(|| used::<T>(count * size));
    let gathered = group.gather_into(&own, memory, root).await.unwrap();
    assert_eq!(gathered.map(TensorMut::freeze), at_root.then_some(expected));

    let all = counts.iter().sum();
    let (before, mine) = (counts[..rank].iter().sum::<usize>(), tensor(&rows::<T>(rank, 0, counts[rank])));
    let expected = tensor(&all_rows::<T>(counts));
    assert_eq!(group.all_gatherv(&mine, counts).await.unwrap(), expected);
    assert_eq!(group.all_gatherv_into(&mine, counts, used::<T>(all)).await.unwrap().freeze(), expected);
    let mut memory = vec![T::of(9); 2 * all];
    memory[2 * before..][..2 * counts[rank]].copy_from_slice(&rows::<T>(rank, 0, counts[rank]));
    assert_eq!(group.all_gatherv_in_place(exclusive(&memory), counts).await.unwrap().freeze(), expected);

    let whole = at_root.then(|| tensor(&rows::<T>(root, 0, count * size)));
    let expected = tensor(&rows::<T>(root, rank * count, count));
    assert_eq!(group.scatter(T::DTYPE, [count, 2], whole.as_ref(), root).await.unwrap(), expected);
    assert_eq!(group.scatter_into(whole.as_ref(), used::<T>(count), root).await.unwrap().freeze(), expected);

    let whole = tensor(&rows::<T>(rank, 0, count * size));
    let parts: Vec<T> = (0..size).flat_map(|from| rows::<T>(from, rank * count, count)).collect();
    assert_eq!(group.all_to_all(&whole).await.unwrap(), tensor(&parts));
    let memory = used::<T>(count * size);
    assert_eq!(group.all_to_all_into(&whole, memory).await.unwrap().freeze(), tensor(&parts));

    // Once around, two at a time, since a send ends when it is received.
    let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
    if size > 1 && rank == root {
        group.send(&own, next).await.unwrap();
        let received = group.recv(T::DTYPE, [count, 2], previous).await.unwrap();
        assert_eq!(received, tensor(&rows::<T>(previous, 0, count)));
    } else if size > 1 {
        let received = group.recv_into(used::<T>(count), previous).await.unwrap().freeze();
        assert_eq!(received, tensor(&rows::<T>(previous, 0, count)));
        group.send(&own, next).await.unwrap();
    }
    group.barrier().await.unwrap();
}

async fn everything<T: Number>(group: &ProcessGroup, case: &Case) {
    reductions::<T>(group, case).await;
    movements::<T>(group, case).await;
}

async fn with_dtype(group: &ProcessGroup, dtype: DType, case: &Case) {
    match dtype {
        DType::UInt8 => everything::<u8>(group, case).await,
        DType::Int8 => everything::<i8>(group, case).await,
        DType::UInt16 => everything::<u16>(group, case).await,
        DType::Int16 => everything::<i16>(group, case).await,
        DType::UInt32 => everything::<u32>(group, case).await,
        DType::Int32 => everything::<i32>(group, case).await,
        DType::UInt64 => everything::<u64>(group, case).await,
        DType::Int64 => everything::<i64>(group, case).await,
        DType::Float16 => everything::<f16>(group, case).await,
        DType::BFloat16 => everything::<bf16>(group, case).await,
        DType::Float32 => everything::<f32>(group, case).await,
        DType::Float64 => everything::<f64>(group, case).await,
        other => panic!("{other}"),
    }
}

const DTYPES: [DType; 12] = [
    DType::UInt8,
    DType::Int8,
    DType::UInt16,
    DType::Int16,
    DType::UInt32,
    DType::Int32,
    DType::UInt64,
    DType::Int64,
    DType::Float16,
    DType::BFloat16,
    DType::Float32,
    DType::Float64,
];

/// All ranks of a new group do everything.
fn run(size: usize, dtype: DType, case: Case) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let ranks = group(size, &config()).await;
        let ranks = each(ranks, move |group| {
            let case = case.clone();
            async move {
                with_dtype(&group, dtype, &case).await;
                group
            }
        })
        .await;
        for left in each(ranks, |rank| rank.destroy()).await {
            left.unwrap();
        }
    });
}

fn any_op(dtype: DType) -> impl Strategy<Value = ReduceOp> {
    let is_integer = dtype.name().contains("int");
    let means = if is_integer { vec![ReduceOp::Avg] } else { Vec::new() };
    let ops = [vec![ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max], means].concat();
    prop::sample::select(ops)
}

fn any_count() -> impl Strategy<Value = usize> {
    // Two elements a row: of some dtypes the last is in chunks, of all of them the one before is not small.
    prop_oneof![2 => Just(0), 2 => Just(1), 4 => 2..50_usize, 2 => 1_000..9_000_usize, 1 => 40_000..90_000_usize]
}

fn any_case() -> impl Strategy<Value = (usize, DType, Case)> {
    (1..=8_usize, prop::sample::select(&DTYPES)).prop_flat_map(|(size, dtype)| {
        let counts = prop::collection::vec(any_count(), size);
        (counts, 0..size, any_op(dtype))
            .prop_map(move |(counts, root, op)| (size, dtype, Case { counts, root, op }))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_is_what_a_naive_one_would_be((size, dtype, case) in any_case()) {
        run(size, dtype, case);
    }
}

#[test]
fn large_tensors_go_by_the_algorithms_that_save_bytes() {
    for size in [2, 3, 4] {
        for dtype in [DType::Float32, DType::BFloat16, DType::UInt8] {
            let counts = (0..size).map(|rank| 300_001 + 17 * rank).collect();
            run(size, dtype, Case { counts, root: size - 1, op: ReduceOp::Sum });
        }
    }
}

#[tokio::test]
async fn scalars_become_one_dimension() {
    let ranks = group(3, &config()).await;
    each(ranks, |group| async move {
        let own = Tensor::from_slice([], &[group.rank() as i32]).unwrap();
        let all = group.all_gather(&own).await.unwrap();
        assert_eq!(all, Tensor::from_slice([3], &[0, 1, 2]).unwrap());
        let sum = group.all_reduce(&own, ReduceOp::Sum).await.unwrap();
        assert_eq!(sum, Tensor::from_slice([], &[3]).unwrap());
    })
    .await;
}

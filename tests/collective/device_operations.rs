//! Every operation on device tensors, in all its forms, against a naive reference.

use kvpipe::collective::{Backend, ProcessGroup, ProcessGroupConfig, ReduceOp};
use kvpipe::net::TokioNet;
use kvpipe::tensor::TensorMut;
use kvpipe::{DType, Result, Tensor};

use crate::child::{cuda, nccl};
use crate::device_ranks::{config, device, on_gpu, own, room};
use crate::ranks::{each, group};
use crate::reference::{numbers, reduced, tensor};

/// What the ranks of a group have, and what is to come of it: tensors of so many rows for each rank.
#[derive(Clone)]
struct Case {
    size: usize,
    rows: usize,
    dtype: DType,
    op: ReduceOp,
}

const COLUMNS: usize = 3;

impl Case {
    /// Of any rank's input, rows of it.
    fn part(&self, rank: usize, rows: std::ops::Range<usize>) -> Tensor {
        let numbers = numbers(self.size * self.rows * COLUMNS, rank, self.size);
        tensor(self.dtype, &[rows.len(), COLUMNS], &numbers[rows.start * COLUMNS..rows.end * COLUMNS])
    }

    fn input(&self, rank: usize) -> Tensor {
        self.part(rank, 0..self.all())
    }

    fn all(&self) -> usize {
        self.size * self.rows
    }

    fn own(&self, rank: usize) -> std::ops::Range<usize> {
        rank * self.rows..(rank + 1) * self.rows
    }

    /// Rows of the reduction.
    fn reduced(&self, rows: std::ops::Range<usize>) -> Tensor {
        let inputs: Vec<_> =
            (0..self.size).map(|rank| numbers(self.all() * COLUMNS, rank, self.size)).collect();
        let reduced = reduced(self.op, &inputs);
        tensor(self.dtype, &[rows.len(), COLUMNS], &reduced[rows.start * COLUMNS..rows.end * COLUMNS])
    }

    /// Tensors, one below the other.
    fn joined(&self, parts: &[Tensor]) -> Tensor {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes().unwrap().to_vec()).collect();
        let rows = parts.iter().map(|part| part.shape().dims()[0]).sum();
        Tensor::new(self.dtype, [rows, COLUMNS], bytes.into()).unwrap()
    }

    /// Uneven parts, of which some have no rows.
    fn uneven(&self) -> Vec<usize> {
        let mut left = self.all();
        let mut rows: Vec<_> = (1..self.size)
            .map(|rank| {
                let rows = left.min((2 * rank) % 3);
                left -= rows;
                rows
            })
            .collect();
        rows.push(left);
        rows
    }
}

async fn check(what: &str, rank: usize, got: Tensor, expected: &Tensor) {
    assert_eq!(got.location(), device().location(), "{what} at rank {rank}");
    let got = got.to_host().await.unwrap();
    assert_eq!((&got, got.shape()), (expected, expected.shape()), "{what} at rank {rank}");
}

/// As [`check`], of a result that only one rank has.
async fn check_root(what: &str, rank: usize, root: usize, got: Option<Tensor>, expected: &Tensor) {
    assert_eq!(got.is_some(), rank == root, "{what}");
    if let Some(got) = got {
        check(what, rank, got, expected).await;
    }
}

async fn reductions(group: &ProcessGroup, case: &Case) -> Result<()> {
    let (rank, op, all) = (group.rank(), case.op, 0..case.all());
    let (host, dims) = (case.input(rank), [case.all(), COLUMNS]);
    let (input, sum) = (on_gpu(&host).await, case.reduced(all));
    check("all_reduce", rank, group.all_reduce(&input, op).await?, &sum).await;
    let into = group.all_reduce_into(&input, room(case.dtype, &dims).await, op).await?;
    check("all_reduce_into", rank, into.freeze(), &sum).await;
    let within = group.all_reduce_in_place(own(&host).await, op).await?;
    check("all_reduce_in_place", rank, within.freeze(), &sum).await;

    for root in 0..case.size {
        check_root("reduce", rank, root, group.reduce(&input, op, root).await?, &sum).await;
        let output = if rank == root { Some(room(case.dtype, &dims).await) } else { None };
        let into = group.reduce_into(&input, output, op, root).await?.map(TensorMut::freeze);
        check_root("reduce_into", rank, root, into, &sum).await;
        let within = group.reduce_in_place(own(&host).await, op, root).await?.freeze();
        check("reduce_in_place", rank, within, if rank == root { &sum } else { &host }).await;
    }

    let part = case.reduced(case.own(rank));
    check("reduce_scatter", rank, group.reduce_scatter(&input, op).await?, &part).await;
    let output = room(case.dtype, part.shape().dims()).await;
    let into = group.reduce_scatter_into(&input, output, op).await?.freeze();
    check("reduce_scatter_into", rank, into, &part).await;
    let within = group.reduce_scatter_in_place(own(&host).await, op).await?;
    check("reduce_scatter_in_place", rank, within, &part).await;

    let rows = case.uneven();
    let begin = rows[..rank].iter().sum();
    let part = case.reduced(begin..begin + rows[rank]);
    check("reduce_scatterv", rank, group.reduce_scatterv(&input, &rows, op).await?, &part).await;
    let output = room(case.dtype, part.shape().dims()).await;
    let into = group.reduce_scatterv_into(&input, &rows, output, op).await?.freeze();
    check("reduce_scatterv_into", rank, into, &part).await;
    let within = group.reduce_scatterv_in_place(own(&host).await, &rows, op).await?;
    check("reduce_scatterv_in_place", rank, within, &part).await;
    Ok(())
}

async fn gathers(group: &ProcessGroup, case: &Case) -> Result<()> {
    let rank = group.rank();
    let parts: Vec<_> = (0..case.size).map(|rank| case.part(rank, case.own(rank))).collect();
    let (input, joined) = (on_gpu(&parts[rank]).await, case.joined(&parts));
    check("all_gather", rank, group.all_gather(&input).await?, &joined).await;
    let output = room(case.dtype, joined.shape().dims()).await;
    check("all_gather_into", rank, group.all_gather_into(&input, output).await?.freeze(), &joined).await;
    // What is in the places of others does not matter.
    let within = group.all_gather_in_place(own(&case.input(rank)).await).await?;
    check("all_gather_in_place", rank, within.freeze(), &joined).await;
    for root in 0..case.size {
        check_root("gather", rank, root, group.gather(&input, root).await?, &joined).await;
        let output = if rank == root { Some(room(case.dtype, joined.shape().dims()).await) } else { None };
        let into = group.gather_into(&input, output, root).await?.map(TensorMut::freeze);
        check_root("gather_into", rank, root, into, &joined).await;
    }

    let rows = case.uneven();
    let places: Vec<_> = (0..case.size)
        .map(|rank| {
            let begin = rows[..rank].iter().sum();
            begin..begin + rows[rank]
        })
        .collect();
    let parts: Vec<_> = (0..case.size).map(|rank| case.part(rank, places[rank].clone())).collect();
    let (input, joined) = (on_gpu(&parts[rank]).await, case.joined(&parts));
    check("all_gatherv", rank, group.all_gatherv(&input, &rows).await?, &joined).await;
    let output = room(case.dtype, joined.shape().dims()).await;
    let into = group.all_gatherv_into(&input, &rows, output).await?.freeze();
    check("all_gatherv_into", rank, into, &joined).await;
    let within = group.all_gatherv_in_place(own(&case.input(rank)).await, &rows).await?;
    check("all_gatherv_in_place", rank, within.freeze(), &joined).await;
    Ok(())
}

async fn spreads(group: &ProcessGroup, case: &Case) -> Result<()> {
    let (rank, dtype) = (group.rank(), case.dtype);
    let host = case.input(rank);
    let (input, dims) = (on_gpu(&host).await, [case.all(), COLUMNS]);
    for root in 0..case.size {
        let (theirs, given) = (case.input(root), (rank == root).then_some(&input));
        check("broadcast", rank, group.broadcast(dtype, dims, given, root).await?, &theirs).await;
        let into = group.broadcast_into(given, room(dtype, &dims).await, root).await?.freeze();
        check("broadcast_into", rank, into, &theirs).await;
        let within = group.broadcast_in_place(own(&host).await, root).await?.freeze();
        check("broadcast_in_place", rank, within, &theirs).await;

        let (part, shape) = (case.part(root, case.own(rank)), [case.rows, COLUMNS]);
        check("scatter", rank, group.scatter(dtype, shape, given, root).await?, &part).await;
        let into = group.scatter_into(given, room(dtype, &shape).await, root).await?.freeze();
        check("scatter_into", rank, into, &part).await;
    }
    let parts: Vec<_> = (0..case.size).map(|peer| case.part(peer, case.own(rank))).collect();
    let turned = case.joined(&parts);
    check("all_to_all", rank, group.all_to_all(&input).await?, &turned).await;
    let into = group.all_to_all_into(&input, room(dtype, &dims).await).await?.freeze();
    check("all_to_all_into", rank, into, &turned).await;

    for (from, to) in (0..case.size).flat_map(|from| (0..case.size).map(move |to| (from, to))) {
        if from != to && rank == from {
            group.send(&input, to).await?;
            group.send(&input, to).await?;
        } else if from != to && rank == to {
            let theirs = case.input(from);
            check("recv", rank, group.recv(dtype, dims, from).await?, &theirs).await;
            let into = group.recv_into(room(dtype, &dims).await, from).await?.freeze();
            check("recv_into", rank, into, &theirs).await;
        }
    }
    group.barrier().await
}

/// All operations, at ranks that have met.
async fn all(size: usize, rows: usize, dtype: DType, op: ReduceOp) {
    let case = Case { size, rows, dtype, op };
    let ranks = each(group(size, &config()).await, |group| {
        let case = case.clone();
        async move {
            reductions(&group, &case).await.unwrap();
            gathers(&group, &case).await.unwrap();
            spreads(&group, &case).await.unwrap();
            group
        }
    })
    .await;
    for left in each(ranks, |group| group.destroy()).await {
        left.unwrap();
    }
    // NCCL had let go of them before the ranks left.
    assert_eq!(nccl().communicators, 0);
}

on_fakes!(one_rank_alone_does_every_operation, "", async || {
    all(1, 2, DType::Float32, ReduceOp::Avg).await;
    all(1, 0, DType::Float32, ReduceOp::Sum).await;
});

on_fakes!(two_ranks_do_every_operation, "", async || {
    for (dtype, op) in [
        (DType::Float32, ReduceOp::Sum),
        (DType::BFloat16, ReduceOp::Max),
        (DType::Int64, ReduceOp::Avg),
        (DType::UInt8, ReduceOp::Prod),
        (DType::Float64, ReduceOp::Min),
    ] {
        for rows in [0, 1, 100] {
            all(2, rows, dtype, op).await;
        }
    }
});

on_fakes!(three_ranks_do_every_operation, "", async || {
    all(3, 7, DType::Float16, ReduceOp::Sum).await;
    all(3, 1, DType::Int32, ReduceOp::Min).await;
    all(3, 0, DType::Int8, ReduceOp::Sum).await;
});

on_fakes!(four_ranks_do_every_operation, "in_progress=3", async || {
    all(4, 2, DType::Float32, ReduceOp::Sum).await;
    all(4, 1000, DType::UInt32, ReduceOp::Max).await;
});

on_fakes!(what_nccl_has_no_type_for_is_moved_and_not_reduced, "", async || {
    let ranks = each(group(2, &config()).await, |group| async move {
        let host = Tensor::from_slice([3], &[group.rank() == 0, true, false]).unwrap();
        let input = on_gpu(&host).await;
        let refused = group.all_reduce(&input, ReduceOp::Max).await.unwrap_err();
        assert_eq!(refused.to_string(), "NCCL has no reductions of bool");
        // Nothing was begun: the other rank need not know.
        let joined = group.all_gather(&input).await.unwrap();
        let expected = [true, true, false, false, true, false];
        check("all_gather", group.rank(), joined, &Tensor::from_slice([6], &expected).unwrap()).await;
        group
    })
    .await;
    assert!(ranks.iter().all(|group| group.failure().is_none()));
});

on_fakes!(a_thousand_operations_keep_the_memory_of_a_few, "", async || {
    let ranks = group(2, &config()).await;
    let before = cuda().allocations;
    let most = each(ranks, |group| async move {
        let input = on_gpu(&Tensor::from_slice([256], &[1.0_f32; 256]).unwrap()).await;
        let mut most = 0;
        for _ in 0..500 {
            drop(group.all_reduce(&input, ReduceOp::Sum).await.unwrap());
            drop(group.all_gather(&input).await.unwrap());
            most = most.max(cuda().allocations);
        }
        (group, most)
    })
    .await;
    // For each rank its input, and one result of either length.
    for (_, most) in most {
        assert!(most <= before + 2 * 3, "{most} allocations, and {before} before");
    }
});

on_fakes!(ranks_meet_at_an_address_of_rank_0, "", async || {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let sums = each(vec![0, 1], |rank| async move {
        let group =
            ProcessGroup::stateless_init_with(TokioNet, "127.0.0.1", port, rank, 2, config()).await.unwrap();
        assert_eq!(group.backend().to_string(), "nccl");
        let input = on_gpu(&Tensor::from_slice([1], &[rank as i32 + 1]).unwrap()).await;
        let sum = group.all_reduce(&input, ReduceOp::Sum).await.unwrap().to_host().await.unwrap();
        group.destroy().await.unwrap();
        sum.to_vec::<i32>().unwrap()
    })
    .await;
    assert_eq!(sums, [[3], [3]]);
});

on_fakes!(a_world_of_one_needs_no_library, "", async || {
    let backend = Backend::Nccl { device: device(), library: None };
    let config = ProcessGroupConfig { backend, ..config() };
    let alone = group(1, &config).await.pop().unwrap();
    let input = on_gpu(&Tensor::from_slice([2], &[1_u8, 2]).unwrap()).await;
    let sum = alone.all_reduce(&input, ReduceOp::Sum).await.unwrap();
    assert_ne!(sum, input, "memory of its own");
    assert_eq!(sum.to_host().await.unwrap().to_vec::<u8>().unwrap(), [1, 2]);
    alone.destroy().await.unwrap();
});

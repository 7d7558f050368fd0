//! Groups on NCCL that fail, or refuse: every rank learns of it, and NCCL lets go of the device.

use std::sync::Arc;
use std::time::Duration;

use kvpipe::collective::{Backend, ProcessGroup, ProcessGroupConfig, ReduceOp};
use kvpipe::device::Location;
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::{DType, Error, Tensor};

use crate::child::cuda;
use crate::device_ranks::{config, device, late, on_gpu, until_events};
use crate::mortal::Mortal;
use crate::ranks::{each, group, group_in};

fn ones() -> Tensor {
    Tensor::from_slice([4], &[1.0_f32; 4]).unwrap()
}

/// Ranks on these networks, that have called an operation.
async fn mortals(nets: &[Mortal]) -> Vec<Arc<ProcessGroup<Mortal>>> {
    let (store, size) = (MemoryStore::new(), nets.len());
    each((0..size).collect(), |rank| {
        let (net, store) = (nets[rank].clone(), store.clone());
        async move {
            let group = ProcessGroup::from_store(net, &store, rank, size, config()).await.unwrap();
            group.barrier().await.unwrap();
            Arc::new(group)
        }
    })
    .await
}

/// All ranks are in the middle of an all-reduce, for which the tensor of `victim` is not ready, when `end`
/// happens; gives what it ended with at each of them.
async fn in_the_middle(
    groups: &[Arc<ProcessGroup<Mortal>>],
    victim: usize,
    end: impl FnOnce(&tokio::task::AbortHandle),
) -> Vec<Option<Error>> {
    let (tensor, gate) = late(&ones()).await;
    let mut inputs = vec![on_gpu(&ones()).await; groups.len()];
    inputs[victim] = tensor;
    // What made the tensors is done.
    until_events(1).await;
    let calls: Vec<_> = groups
        .iter()
        .zip(inputs)
        .map(|(group, input)| {
            let group = Arc::clone(group);
            tokio::spawn(async move { group.all_reduce(&input, ReduceOp::Sum).await.unwrap_err() })
        })
        .collect();
    until_events(1 + groups.len() as u64).await;
    end(&calls[victim].abort_handle());
    let mut errors = Vec::new();
    for call in calls {
        errors.push(call.await.ok());
    }
    drop(gate);
    errors
}

on_fakes!(a_rank_that_dies_in_the_middle_ends_the_operation_of_all_others, "", async || {
    for (size, victim) in [(2, 1), (3, 0), (4, 2)] {
        let nets: Vec<_> = (0..size).map(|_| Mortal::new()).collect();
        let groups = mortals(&nets).await;
        let errors = in_the_middle(&groups, victim, |_| nets[victim].die()).await;
        for (rank, error) in errors.into_iter().enumerate().filter(|(rank, _)| *rank != victim) {
            let Some(Error::PeerGone { link, .. }) = &error else { panic!("{error:?}") };
            assert_eq!(link.peer_rank, victim, "rank {rank} of {size}: {error:?}");
            let later = groups[rank].barrier().await;
            assert!(matches!(later, Err(Error::GroupBroken { .. })), "{later:?}");
        }
        // No memory is kept by what has failed.
        drop(groups);
        until_events(0).await;
    }
});

on_fakes!(an_operation_that_is_dropped_in_the_middle_ends_it_for_all, "", async || {
    let nets = [Mortal::new(), Mortal::new(), Mortal::new()];
    let groups = mortals(&nets).await;
    let errors = in_the_middle(&groups, 1, |call| call.abort()).await;
    assert!(errors[1].is_none());
    for error in [&errors[0], &errors[2]].into_iter().flatten() {
        assert!(matches!(error, Error::PeerAborted { .. }), "{error}");
        assert!(error.to_string().contains("was dropped before its end"), "{error}");
    }
    assert!(matches!(groups[1].failure(), Some(Error::Misuse(_))));
});

on_fakes!(an_operation_that_nccl_does_not_end_ends_at_the_deadline, "", async || {
    let timeout = Duration::from_secs(3);
    let config = ProcessGroupConfig { timeout, ..config() };
    let groups = group(2, &config).await;
    let (tensor, gate) = late(&ones()).await;
    let mut inputs = vec![tensor, on_gpu(&ones()).await];
    let calls = groups.into_iter().map(|group| (group, inputs.remove(0))).collect();
    let errors =
        each(
            calls,
            |(group, input)| async move { group.all_reduce(&input, ReduceOp::Sum).await.unwrap_err() },
        )
        .await;
    // One comes first, and tells the other.
    let timeouts = errors.iter().filter(|error| matches!(error, Error::Timeout { .. })).count();
    assert!(timeouts > 0, "{errors:?}");
    for error in &errors {
        let text = error.to_string();
        assert!(text.contains("the end of operation 2, all_reduce(sum) of float32 [4]"), "{text}");
    }
    drop(gate);
});

on_fakes!(
    what_nccl_refuses_at_one_rank_ends_the_operation_of_all,
    "rank=0,fail=ncclAllReduce:2:3",
    async || {
        let errors = each(group(3, &config()).await, |group| async move {
            let input = on_gpu(&ones()).await;
            let error = group.all_reduce(&input, ReduceOp::Sum).await.unwrap_err();
            assert!(matches!(group.destroy().await, Err(Error::GroupBroken { .. })));
            error
        })
        .await;
        assert!(matches!(&errors[0], Error::Nccl { call: "ncclAllReduce", code: 3, .. }), "{}", errors[0]);
        for error in &errors[1..] {
            assert!(matches!(error, Error::PeerAborted { .. }), "{error}");
            assert!(error.to_string().contains("ncclAllReduce"), "{error}");
        }
    }
);

on_fakes!(a_mismatch_is_found_before_nccl_is_asked, "", async || {
    let errors = each(group(3, &config()).await, |group| async move {
        let elements = if group.rank() == 2 { 5 } else { 4 };
        let input = on_gpu(&Tensor::from_vec([elements], vec![1.0_f32; elements]).unwrap()).await;
        group.all_reduce(&input, ReduceOp::Sum).await.unwrap_err()
    })
    .await;
    for error in errors {
        assert!(matches!(error, Error::PeerIncompatible { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("rank 2 calls all_reduce(sum) of float32 [5]"), "{text}");
        assert!(text.contains("calls all_reduce(sum) of float32 [4]"), "{text}");
    }
    let errors = each(group(2, &config()).await, |group| async move {
        match group.rank() {
            0 => group.send(&on_gpu(&ones()).await, 1).await.unwrap_err(),
            _ => group.recv(DType::Float64, [4], 0).await.unwrap_err(),
        }
    })
    .await;
    for error in errors {
        let text = error.to_string();
        assert!(text.contains("send of float32 [4] from rank 0 to rank 1"), "{text}");
        assert!(text.contains("send of float64 [4] from rank 0 to rank 1"), "{text}");
    }
});

on_fakes!(a_tensor_on_the_host_is_refused_and_breaks_nothing, "", async || {
    let ranks = each(group(2, &config()).await, |group| async move {
        let elsewhere = "this group works on cuda:0, with NCCL, and the input is on cpu: \
                         copy it there (Tensor::to_device), or use a group of the backend host";
        assert_eq!(group.all_gather(&ones()).await.unwrap_err().to_string(), elsewhere);
        let output = kvpipe::tensor::TensorMut::zeroed(DType::Float32, [4]).unwrap();
        let refused = group.all_reduce_in_place(output, ReduceOp::Sum).await.unwrap_err();
        assert!(refused.to_string().contains("the output is on cpu"), "{refused}");
        group.barrier().await.unwrap();
        group
    })
    .await;
    let host = group(1, &crate::ranks::config()).await;
    let refused = host[0].all_reduce(&on_gpu(&ones()).await, ReduceOp::Sum).await.unwrap_err();
    assert!(matches!(refused, Error::Misuse(_)), "{refused}");
    drop(ranks);
});

on_fakes!(ranks_of_one_group_have_the_same_backend, "", async || {
    let store = MemoryStore::new();
    let configs = vec![config(), crate::ranks::config()];
    let ranks = configs.into_iter().enumerate().collect();
    let errors = each(ranks, |(rank, config)| {
        let store = store.clone();
        async move {
            let group = ProcessGroup::from_store(TokioNet, &store, rank, 2, config).await?;
            group.barrier().await
        }
    })
    .await;
    for error in errors {
        let text = error.unwrap_err().to_string();
        assert!(text.contains("rank 0 calls forming a group on NCCL 2.27.3 as operation 0"), "{text}");
        assert!(text.contains("rank 1 calls barrier as operation 0"), "{text}");
    }
});

on_fakes!(without_a_library_a_rank_says_so_and_the_other_learns_that_it_left, "", async || {
    let store = MemoryStore::new();
    let errors = each(vec![0, 1], |rank| {
        let (store, mut config) = (store.clone(), config());
        if rank == 1 {
            config.backend = Backend::Nccl { device: device(), library: None };
        }
        async move { ProcessGroup::from_store(TokioNet, &store, rank, 2, config).await.map(drop).unwrap_err() }
    })
    .await;
    assert!(matches!(&errors[0], Error::PeerGone { link, .. } if link.peer_rank == 1), "{}", errors[0]);
    assert!(errors[1].to_string().contains("no library was given"), "{}", errors[1]);
});

on_fakes!(groups_of_other_members_and_backends_work_side_by_side, "", async || {
    let store = MemoryStore::new();
    let named = |name: &str, config: ProcessGroupConfig| ProcessGroupConfig {
        name: kvpipe::group::GroupName::new(name).unwrap(),
        ..config
    };
    let on_device = group_in(&store, 3, &named("device", config())).await;
    let pair = group_in(&store, 2, &named("pair", config())).await;
    let on_host = group_in(&store, 3, &named("host", crate::ranks::config())).await;
    let mut pair = pair.into_iter();
    let ranks = on_device.into_iter().zip(on_host).map(|(device, host)| (device, host, pair.next()));
    each(ranks.collect(), |(device, host, pair)| async move {
        for _ in 0..20 {
            let input = on_gpu(&ones()).await;
            let of_pair = async {
                match &pair {
                    Some(pair) => Some(pair.all_reduce(&input, ReduceOp::Sum).await.unwrap()),
                    None => None,
                }
            };
            let ones = ones();
            let (all, same, two) = tokio::join!(
                device.all_reduce(&input, ReduceOp::Sum),
                host.all_reduce(&ones, ReduceOp::Sum),
                of_pair
            );
            assert_eq!(all.unwrap().to_host().await.unwrap(), same.unwrap());
            if let Some(two) = two {
                assert_eq!(two.to_host().await.unwrap().to_vec::<f32>().unwrap(), [2.0; 4]);
            }
        }
    })
    .await;
});

on_fakes!(backends_have_names, "", async || {
    for name in ["host", "gloo"] {
        assert!(matches!(Backend::named(name, Location::Cuda(0)).unwrap(), Backend::Host));
    }
    let unknown = Backend::named("mpi", Location::Cpu).unwrap_err().to_string();
    assert_eq!(unknown, "there is no backend \"mpi\", only host (or gloo) and nccl");
    let nowhere = Backend::named("nccl", Location::Cpu).unwrap_err().to_string();
    assert_eq!(nowhere, "nccl moves no tensors on cpu: give it a GPU, or take host");
    assert!(matches!(Backend::named("nccl", Location::Cuda(9)), Err(Error::Unavailable { .. })));
    assert_eq!(Backend::default().to_string(), "host");
    assert_eq!(cuda().allocations, 0);
});

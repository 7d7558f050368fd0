//! How ranks come together.

use std::sync::Arc;

use kvpipe::device::Stream;
use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::nccl::{Communicator, ReduceOp};
use kvpipe::store::{MemoryStore, Store};
use kvpipe::wire::{Object, pickle};
use kvpipe::{Error, Tensor};

use crate::world::{HANG, all, config, device, library};

fn group(
    store: &MemoryStore,
    rank: usize,
    ranks: usize,
    wire: WireMode,
) -> StatelessProcessGroup<MemoryStore> {
    let config = GroupConfig { wire, ..GroupConfig::default() };
    StatelessProcessGroup::new(store.clone(), rank, ranks, config).unwrap()
}

on_fakes!(ranks_of_a_group_form_a_communicator_on_either_wire, "", async || {
    for wire in [WireMode::Native, WireMode::Vllm] {
        let store = MemoryStore::new();
        let ranks = (0..3).map(|rank| {
            let group = group(&store, rank, 3, wire);
            async move {
                let made = Communicator::new(&group, device(), Some(library()), config()).await.unwrap();
                let stream = Stream::new(made.device()).unwrap();
                let one = Tensor::from_slice([1], &[1_i32]).unwrap().to_device(made.device()).await.unwrap();
                let sum = made.all_reduce(&one, ReduceOp::Sum, &stream).await.unwrap();
                assert_eq!(sum.to_host().await.unwrap().to_vec::<i32>().unwrap(), [3]);
                group
            }
        });
        // Their groups live until the last of them has read the id.
        drop(all(ranks.collect::<Vec<_>>()).await);
        if wire == WireMode::Vllm {
            let value = store.get("broadcast_from/0/0", HANG).await.unwrap();
            let Object::UniqueId(id) = pickle::decode(&value, &pickle::Limits::default()).unwrap() else {
                panic!("no unique id was broadcast");
            };
            assert_ne!(id.0, [0; 128]);
        }
    }
});

on_fakes!(a_world_of_one_needs_no_library, "", async || {
    let group = Arc::new(group(&MemoryStore::new(), 0, 1, WireMode::Native));
    let alone = Communicator::new(&group, device(), None, config()).await.unwrap();
    let stream = Stream::new(alone.device()).unwrap();
    let tensor = Tensor::from_slice([2, 2], &[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
    let tensor = tensor.to_device(alone.device()).await.unwrap();
    assert_eq!(alone.all_reduce(&tensor, ReduceOp::Avg, &stream).await.unwrap(), tensor);
    assert_eq!(alone.all_gather(&tensor, &stream).await.unwrap(), tensor);
    assert_eq!(alone.reduce_scatter(&tensor, ReduceOp::Sum, &stream).await.unwrap(), tensor);
    let refused = alone.send(&tensor, 0, &stream).await.unwrap_err();
    assert!(matches!(refused, Error::Misuse(_)), "{refused}");
});

on_fakes!(more_ranks_without_a_library_are_an_error, "", async || {
    let group = group(&MemoryStore::new(), 0, 2, WireMode::Native);
    let error = Communicator::new(&group, device(), None, config()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
});

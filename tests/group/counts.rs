//! How many operations of the store a call takes, and that none leaves anything behind.

use kvpipe::group::WireMode;

use crate::support::{Watched, groups, on_every, pair, text};

const SIZES: [usize; 12] = [2, 3, 4, 5, 8, 16, 31, 32, 64, 100, 128, 256];

#[tokio::test(start_paused = true)]
async fn a_native_barrier_takes_5_operations_a_rank_and_leaves_nothing() {
    for world_size in SIZES {
        let store = Watched::new();
        let groups = groups(&store, WireMode::Native, world_size);
        for barriers in 1..=2 {
            for passed in on_every(&groups, |group| group.barrier()).await {
                passed.unwrap();
            }
            assert_eq!(store.ops().len(), barriers * (5 * world_size - 1), "of {world_size}");
            assert!(store.keys().is_empty(), "{:?}", store.keys());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn vllms_barrier_takes_6_operations_a_rank_and_leaves_nothing() {
    for world_size in SIZES {
        let store = Watched::new();
        let groups = groups(&store, WireMode::Vllm, world_size);
        for barriers in 1..=2 {
            for passed in on_every(&groups, |group| group.barrier()).await {
                passed.unwrap();
            }
            assert_eq!(store.ops().len(), barriers * (6 * world_size + 2), "of {world_size}");
            assert!(store.keys().is_empty(), "{:?}", store.keys());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_native_object_takes_3_operations_and_a_broadcast_2_a_rank_and_they_leave_nothing() {
    let store = Watched::new();
    let [zero, one] = pair(&store, WireMode::Native);
    zero.send_obj(&text("x"), 1).await.unwrap();
    one.recv_obj(0).await.unwrap();
    assert_eq!(store.ops().len(), 3);
    for world_size in [2, 3, 8, 64] {
        let store = Watched::new();
        let groups = groups(&store, WireMode::Native, world_size);
        let object = text("x");
        for got in on_every(&groups, |group| group.broadcast_obj(Some(&object), 1)).await {
            got.unwrap();
        }
        assert_eq!(store.ops().len(), if world_size == 2 { 3 } else { 2 * world_size + 1 });
        assert!(store.keys().is_empty(), "{:?}", store.keys());
    }
}

//! Peers and libraries that fail: every wait ends, and says why.

use std::sync::Arc;
use std::time::Duration;

use kvpipe::nccl::{Communicator, CommunicatorConfig, ReduceOp};
use kvpipe::{DType, Error, Shape, Tensor};

use crate::child::cuda;
use crate::world::{HANG, Rank, all, connected, device, library, world};

/// Short, since it is waited for; nothing is measured by it.
const SOON: Duration = Duration::from_millis(500);

async fn ones() -> Tensor {
    Tensor::from_slice([3], &[1_i32; 3]).unwrap().to_device(&device()).await.unwrap()
}

/// What a receive that nobody answers ends with.
fn waiting(rank: &Arc<Rank>) -> tokio::task::JoinHandle<Result<Tensor, Error>> {
    let rank = Arc::clone(rank);
    tokio::spawn(async move {
        let peer = 1 - rank.communicator.rank();
        rank.communicator.recv(DType::Int32, Shape::new(&[3]).unwrap(), peer, &rank.stream).await
    })
}

async fn ends<T>(waiting: tokio::task::JoinHandle<Result<T, Error>>) -> Error {
    let ended = tokio::time::timeout(HANG, waiting).await.expect("it hangs").unwrap();
    ended.map(drop).unwrap_err()
}

on_fakes!(a_rank_that_never_comes_is_waited_for_until_the_deadline, "", async || {
    let id = library().unique_id().unwrap();
    let config = CommunicatorConfig { connect_timeout: SOON, ..CommunicatorConfig::default() };
    let error = Communicator::with_unique_id(id, [0, 2], device(), library(), config).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "timed out after 0.5 s waiting for the 2 ranks of a communicator to come together"
    );
});

on_fakes!(a_library_whose_initialisation_blocks_keeps_nobody, "init_blocks", async || {
    let id = library().unique_id().unwrap();
    let config = CommunicatorConfig { connect_timeout: SOON, ..CommunicatorConfig::default() };
    let error = Communicator::with_unique_id(id, [0, 2], device(), library(), config).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
});

on_fakes!(calls_that_stay_in_progress_for_a_while_are_waited_for, "in_progress=7", async || {
    let world = world(2).await;
    let sums = world.iter().cloned().map(|rank| async move {
        for _ in 0..3 {
            let sum = rank.communicator.all_reduce(&ones().await, ReduceOp::Sum, &rank.stream).await.unwrap();
            assert_eq!(sum.to_host().await.unwrap().to_vec::<i32>().unwrap(), [2; 3]);
        }
    });
    all(sums.collect::<Vec<_>>()).await;
});

on_fakes!(an_abort_ends_every_wait_with_its_reason, "", async || {
    let world = world(2).await;
    let (first, second) = (waiting(&world[0]), waiting(&world[0]));
    tokio::task::yield_now().await;
    world[0].communicator.abort(Error::Misuse("the peer is gone".into())).await.unwrap();
    for waiting in [first, second] {
        assert_eq!(ends(waiting).await.to_string(), "the peer is gone");
    }
    let late = world[0].communicator.all_reduce(&ones().await, ReduceOp::Sum, &world[0].stream).await;
    assert_eq!(late.unwrap_err().to_string(), "the peer is gone");
    assert_eq!(world[0].communicator.failed().await.to_string(), "the peer is gone");
});

on_fakes!(an_abort_that_hangs_is_given_up, "abort_hangs", async || {
    let id = library().unique_id().unwrap();
    let config = CommunicatorConfig { abort_timeout: SOON, ..CommunicatorConfig::default() };
    let formed =
        [0, 1].map(|rank| Communicator::with_unique_id(id, [rank, 2], device(), library(), config.clone()));
    let mut formed = all(formed).await;
    let communicator = formed.remove(0).unwrap();
    let given_up = communicator.abort(Error::Misuse("enough".into())).await.unwrap_err();
    assert_eq!(
        given_up.to_string(),
        "timed out after 0.5 s waiting for NCCL to abort the communicator of rank 0 of 2"
    );
    assert_eq!(communicator.failure().unwrap().to_string(), "enough");
});

on_fakes!(an_operation_whose_peer_does_not_come_ends_at_the_deadline, "", async || {
    let id = library().unique_id().unwrap();
    let config = CommunicatorConfig { operation_timeout: SOON, ..CommunicatorConfig::default() };
    let formed =
        [0, 1].map(|rank| Communicator::with_unique_id(id, [rank, 2], device(), library(), config.clone()));
    let formed = all(formed).await;
    let communicator = formed[0].as_ref().unwrap();
    let stream = kvpipe::device::Stream::new(&device()).unwrap();
    let error = communicator.all_reduce(&ones().await, ReduceOp::Sum, &stream).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(matches!(communicator.failure(), Some(Error::Timeout { .. })));
});

on_fakes!(
    a_call_that_nccl_refuses_is_told_to_all_with_code_and_text,
    "rank=0,fail=ncclSend:2:3",
    async || {
        let world = connected().await;
        let bystander = waiting(&world[0]);
        tokio::task::yield_now().await;
        let error = world[0].communicator.send(&ones().await, 1, &world[0].stream).await.unwrap_err();
        let Error::Nccl { call, code, text, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*call, *code), ("ncclSend", 3));
        assert!(text.contains("internal error"), "{text}");
        assert!(matches!(ends(bystander).await, Error::Nccl { code: 3, .. }));
    }
);

on_fakes!(a_peer_that_nccl_has_lost_ends_the_wait_for_it, "async_errors=on", async || {
    let mut world = connected().await;
    let waiting = waiting(&world[0]);
    let gone = world.pop().unwrap();
    gone.communicator.abort(Error::Misuse("it dies".into())).await.unwrap();
    drop(gone);
    let error = ends(waiting).await;
    assert!(matches!(error, Error::Nccl { code: 6, .. }), "{error}");
});

on_fakes!(
    an_asynchronous_error_is_found_though_nobody_waits_for_anything,
    "rank=1,async_error=2:6",
    async || {
        let world = world(2).await;
        for _ in 0..2 {
            let sums = world.iter().cloned().map(|rank| async move {
                rank.communicator.all_reduce(&ones().await, ReduceOp::Sum, &rank.stream).await.unwrap()
            });
            all(sums.collect::<Vec<_>>()).await;
        }
        let (rank, ones) = (Arc::clone(&world[1]), ones().await);
        while cuda().events > 0 {
            tokio::task::yield_now().await;
        }
        // Whoever waits for it leaves; the communicator is looked after all the same.
        let failing =
            tokio::spawn(
                async move { rank.communicator.all_reduce(&ones, ReduceOp::Sum, &rank.stream).await },
            );
        while cuda().events == 0 && world[1].communicator.failure().is_none() {
            tokio::task::yield_now().await;
        }
        failing.abort();
        let error =
            tokio::time::timeout(HANG, world[1].communicator.failed()).await.expect("it is not found");
        assert!(matches!(error, Error::Nccl { code: 6, .. }), "{error}");
    }
);

on_fakes!(an_old_library_lacks_windows_and_says_so, "", async || {
    let broken = tempfile::tempdir().unwrap();
    let path = broken.path().join("libnccl.so.2");
    let symbols = ["ncclCommWindowRegister", "ncclCommWindowDeregister"];
    kvpipe_fake_nccl::without_symbols(&kvpipe_fake_nccl::library().unwrap(), &symbols, &path).unwrap();
    let library = kvpipe::nccl::Library::load(Some(&path)).unwrap();
    let id = library.unique_id().unwrap();
    let config = CommunicatorConfig::default();
    let formed = [0, 1].map(|rank| {
        Communicator::with_unique_id(id, [rank, 2], device(), Arc::clone(&library), config.clone())
    });
    let formed = all(formed).await;
    let communicator = formed[0].as_ref().unwrap();
    let buffer = kvpipe::device::DeviceBufferMut::allocate(&device(), 64).unwrap().freeze();
    let error = communicator.register_window(&buffer).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the NCCL library that is loaded has no ncclCommWindowRegister, which came with NCCL 2.27"
    );
    assert!(communicator.failure().is_none(), "nothing was asked of it");
});

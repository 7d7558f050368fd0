//! Groups that meet at an address, as vLLM's do.

use kvpipe::collective::{Backend, ProcessGroup, ReduceOp};
use kvpipe::device::Location;
use kvpipe::net::TokioNet;
use kvpipe::{Error, Tensor};
use tokio::net::TcpListener;

use crate::ranks::{config, each};

/// A port that is free, and is not handed out again soon.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// What vLLM does between `stateless_init_torch_distributed_process_group` and
/// `stateless_destroy_torch_distributed_process_group`, and more than once in a process.
#[tokio::test]
async fn ranks_meet_at_an_address_which_is_free_again_and_leave() {
    let port = free_port().await;
    for size in [1, 2, 3] {
        let ranks = each((0..size).collect(), |rank| async move {
            ProcessGroup::stateless_init_with(TokioNet, "127.0.0.1", port, rank, size, config())
                .await
                .unwrap()
        })
        .await;
        drop(TcpListener::bind(("127.0.0.1", port)).await.unwrap());
        let sums = each(ranks, |group| async move {
            let own = Tensor::from_slice([1], &[group.rank() as u32 + 1]).unwrap();
            let sum = group.all_reduce(&own, ReduceOp::Sum).await.unwrap();
            group.destroy().await.unwrap();
            sum
        });
        let all = (1..=size as u32).sum::<u32>();
        assert!(sums.await.iter().all(|sum| sum.as_slice::<u32>().unwrap() == [all]), "{size}");
    }
}

#[test]
fn backends_have_the_names_that_vllm_gives_them() {
    for name in ["host", "gloo"] {
        assert!(matches!(Backend::named(name, Location::Cpu), Ok(Backend::Host)));
    }
    for (name, words) in [("nccl", "nccl moves no tensors on cpu"), ("mpi", "there is no backend \"mpi\"")] {
        let error = Backend::named(name, Location::Cpu).unwrap_err();
        assert!(matches!(&error, Error::Misuse(what) if what.starts_with(words)), "{error}");
    }
}

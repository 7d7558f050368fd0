//! What is refused before NCCL is asked, and leaves the communicator as it was.

use kvpipe::nccl::ReduceOp;
use kvpipe::{DType, Error, Shape, Tensor};

use crate::world::{device, world};

fn misuse<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome.unwrap_err() {
        Error::Misuse(text) => text,
        other => panic!("{other:?}"),
    }
}

on_fakes!(what_does_not_fit_is_refused_with_both_values, "", async || {
    let world = world(2).await;
    let (communicator, stream) = (&world[0].communicator, &world[0].stream);
    let host = Tensor::from_slice([3], &[1.0_f32, 2.0, 3.0]).unwrap();
    let here = host.to_device(&device()).await.unwrap();

    let refused = misuse(communicator.all_reduce(&host, ReduceOp::Sum, stream).await);
    assert_eq!(refused, "this communicator works on cuda:0, and the tensor is on cpu");
    let refused = misuse(communicator.reduce(&here, ReduceOp::Sum, 2, stream).await);
    assert_eq!(refused, "there is no rank 2 of 2");
    let refused = misuse(communicator.reduce_scatter(&here, ReduceOp::Sum, stream).await);
    assert_eq!(refused, "[3] can't be divided among 2 ranks");
    let refused = misuse(communicator.all_gatherv(&here, &[3], stream).await);
    assert_eq!(refused, "1 sizes for 2 ranks");
    let refused = misuse(communicator.all_gatherv(&here, &[2, 3], stream).await);
    assert_eq!(refused, "its part of an all_gatherv has 3 rows, where the sizes say 2");
    let refused = misuse(communicator.reduce_scatterv(&here, &[2, 2], ReduceOp::Sum, stream).await);
    assert_eq!(refused, "the input of a reduce_scatterv has 3 rows, where the sizes say 4");
    let refused = misuse(communicator.send(&here, 0, stream).await);
    assert_eq!(refused, "rank 0 is this rank, which has nothing to send to itself");
    let shape = Shape::new(&[2]).unwrap();
    let refused = misuse(communicator.broadcast(DType::Float32, shape, Some(&here), 0, stream).await);
    assert_eq!(refused, "rank 0 broadcasts, and so must give a tensor float32 [2]");
    let bools = Tensor::from_slice([1], &[true]).unwrap().to_device(&device()).await.unwrap();
    let refused = misuse(communicator.all_reduce(&bools, ReduceOp::Sum, stream).await);
    assert_eq!(refused, "NCCL has no reductions of bool");

    assert!(communicator.failure().is_none());
});

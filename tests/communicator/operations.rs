//! Every operation against the naive reference.

use std::sync::Arc;

use kvpipe::device::DeviceBufferMut;
use kvpipe::nccl::ReduceOp;
use kvpipe::{DType, Shape, Tensor};

use crate::reference::{OPS, REDUCED, numbers, reduced, tensor};
use crate::world::{Rank, all, device, each, world};

/// Counts of elements: none, one, odd, not divisible by the ranks, more than a block.
const COUNTS: [usize; 5] = [0, 1, 7, 64, 4099];

const RANKS: [usize; 3] = [2, 3, 4];

async fn host(tensor: &Tensor) -> Tensor {
    tensor.to_host().await.unwrap()
}

on_fakes!(all_reduce_of_every_dtype_and_operation, "", async || {
    for ranks in RANKS {
        let world = world(ranks).await;
        for dtype in REDUCED {
            for op in OPS {
                for count in COUNTS {
                    let inputs: Vec<_> = (0..ranks).map(|rank| numbers(count, rank, ranks)).collect();
                    let tensors: Vec<_> = inputs.iter().map(|input| tensor(dtype, &[count], input)).collect();
                    let outputs = each(&world, &tensors, move |rank: Arc<Rank>, input| async move {
                        rank.communicator.all_reduce(&input, op, &rank.stream).await.unwrap()
                    });
                    // Of a world of four, some products are beyond what 8 bits hold; they wrap around
                    // alike.
                    let expected = tensor(dtype, &[count], &reduced(op, &inputs));
                    for output in outputs.await {
                        assert_eq!(
                            host(&output).await,
                            expected,
                            "{op:?} of {count} {dtype} at {ranks} ranks"
                        );
                    }
                }
            }
        }
    }
});

on_fakes!(reduce_gives_the_root_what_all_reduce_gives_everybody, "", async || {
    let world = world(3).await;
    for root in 0..3 {
        let inputs: Vec<_> = (0..3).map(|rank| numbers(65, rank, 3)).collect();
        let tensors: Vec<_> = inputs.iter().map(|input| tensor(DType::Float32, &[5, 13], input)).collect();
        let outputs = each(&world, &tensors, move |rank: Arc<Rank>, input| async move {
            rank.communicator.reduce(&input, ReduceOp::Sum, root, &rank.stream).await.unwrap()
        });
        for (rank, output) in outputs.await.into_iter().enumerate() {
            match output {
                Some(output) => {
                    assert_eq!(rank, root);
                    let expected = tensor(DType::Float32, &[5, 13], &reduced(ReduceOp::Sum, &inputs));
                    assert_eq!(host(&output).await, expected);
                }
                None => assert_ne!(rank, root),
            }
        }
    }
});

on_fakes!(all_gather_joins_rows_in_the_order_of_ranks, "", async || {
    for ranks in RANKS {
        let world = world(ranks).await;
        for shape in [&[][..], &[0], &[3], &[2, 5]] {
            let count = shape.iter().product();
            // A dtype that NCCL does not have: it travels as bytes.
            let inputs: Vec<_> = (0..ranks).map(|rank| vec![rank as i16 + 1; count]).collect();
            let tensors: Vec<_> =
                inputs.iter().map(|input| Tensor::from_slice(shape, input).unwrap()).collect();
            let outputs = each(&world, &tensors, |rank: Arc<Rank>, input| async move {
                rank.communicator.all_gather(&input, &rank.stream).await.unwrap()
            });
            let mut joined = shape.to_vec();
            match joined.first_mut() {
                Some(rows) => *rows *= ranks,
                None => joined.push(ranks),
            }
            for output in outputs.await {
                assert_eq!(output.shape().dims(), joined);
                assert_eq!(host(&output).await.to_vec::<i16>().unwrap(), inputs.concat());
            }
        }
    }
});

on_fakes!(parts_of_different_lengths_are_gathered_and_scattered, "", async || {
    let world = world(3).await;
    let sizes = [2, 0, 5];
    let row = |row: usize| [row as f64, row as f64 + 0.5];
    let parts: Vec<Vec<f64>> = [0..2, 2..2, 2..7].map(|rows| rows.flat_map(row).collect()).to_vec();
    let tensors: Vec<_> =
        parts.iter().zip(sizes).map(|(part, rows)| Tensor::from_slice([rows, 2], part).unwrap()).collect();
    let gathered = each(&world, &tensors, move |rank: Arc<Rank>, input| async move {
        rank.communicator.all_gatherv(&input, &sizes, &rank.stream).await.unwrap()
    });
    let whole = Tensor::from_slice([7, 2], &parts.concat()).unwrap();
    for output in gathered.await {
        assert_eq!(host(&output).await, whole);
    }

    let wholes = vec![whole; 3];
    let scattered = each(&world, &wholes, move |rank: Arc<Rank>, input| async move {
        rank.communicator.reduce_scatterv(&input, &sizes, ReduceOp::Sum, &rank.stream).await.unwrap()
    });
    for (rank, output) in scattered.await.into_iter().enumerate() {
        let expected: Vec<f64> = parts[rank].iter().map(|element| element * 3.0).collect();
        assert_eq!(output.shape().dims(), [sizes[rank], 2]);
        assert_eq!(host(&output).await.to_vec::<f64>().unwrap(), expected);
    }
});

on_fakes!(reduce_scatter_gives_each_rank_its_part, "", async || {
    for ranks in RANKS {
        let world = world(ranks).await;
        let (rows, count) = (2 * ranks, 2 * ranks * 3);
        let inputs: Vec<_> = (0..ranks).map(|rank| numbers(count, rank, ranks)).collect();
        let tensors: Vec<_> = inputs.iter().map(|input| tensor(DType::BFloat16, &[rows, 3], input)).collect();
        let outputs = each(&world, &tensors, |rank: Arc<Rank>, input| async move {
            rank.communicator.reduce_scatter(&input, ReduceOp::Max, &rank.stream).await.unwrap()
        });
        let whole = reduced(ReduceOp::Max, &inputs);
        for (rank, output) in outputs.await.into_iter().enumerate() {
            let expected = tensor(DType::BFloat16, &[2, 3], &whole[rank * 6..(rank + 1) * 6]);
            assert_eq!(host(&output).await, expected);
        }
    }
});

on_fakes!(broadcast_reaches_every_rank_from_any_root, "", async || {
    let world = world(3).await;
    for root in 0..3 {
        for count in COUNTS {
            let bytes: Vec<u8> = (0..count).map(|index| (index * 7 + root) as u8).collect();
            let input = Tensor::from_slice([count], &bytes).unwrap();
            let inputs = vec![input.clone(); 3];
            let outputs = each(&world, &inputs, move |rank: Arc<Rank>, input| async move {
                let own = (rank.communicator.rank() == root).then_some(&input);
                let shape = Shape::new(&[count]).unwrap();
                rank.communicator.broadcast(DType::UInt8, shape, own, root, &rank.stream).await.unwrap()
            });
            for output in outputs.await {
                assert_eq!(host(&output).await, input);
            }
        }
    }
});

on_fakes!(a_tensor_is_sent_and_received_whatever_its_dtype, "", async || {
    let world = world(2).await;
    for dtype in DType::ALL.iter().copied() {
        let shape = Shape::new(&[3, 4]).unwrap();
        let bytes: Vec<u8> = (0..shape.byte_len(dtype).unwrap()).map(|index| index as u8 % 2).collect();
        let input = Tensor::new(dtype, shape, bytes.into()).unwrap();
        let on_device = input.to_device(&device()).await.unwrap();
        let (sender, receiver) = (Arc::clone(&world[0]), Arc::clone(&world[1]));
        let sending =
            tokio::spawn(async move { sender.communicator.send(&on_device, 1, &sender.stream).await });
        let receiving = receiver.communicator.recv(dtype, shape, 0, &receiver.stream);
        let output = tokio::time::timeout(crate::world::HANG, receiving).await.expect("it hangs").unwrap();
        sending.await.unwrap().unwrap();
        assert_eq!(host(&output).await, input, "{dtype}");
    }
});

on_fakes!(two_ranks_that_send_to_each_other_in_a_group_do_not_wait_for_each_other, "", async || {
    let world = world(2).await;
    let exchanged = world.iter().cloned().map(|rank| async move {
        let (own, other) = (rank.communicator.rank(), 1 - rank.communicator.rank());
        // More than any buffer between the two.
        let input = Tensor::from_slice([1 << 20], &vec![own as i32; 1 << 20]).unwrap();
        let input = input.to_device(&device()).await.unwrap();
        let mut group = rank.communicator.group();
        group.send(&input, other).unwrap();
        group.recv(DType::Int32, Shape::new(&[1 << 20]).unwrap(), other).await.unwrap();
        let received = group.run(&rank.stream).await.unwrap();
        assert_eq!(received.len(), 1);
        let received = received[0].to_host().await.unwrap().to_vec::<i32>().unwrap();
        assert!(received.iter().all(|element| *element == other as i32));
    });
    all(exchanged.collect::<Vec<_>>()).await;
});

on_fakes!(a_group_receives_into_memory_that_is_there_if_it_fits, "", async || {
    let world = world(2).await;
    let exchanged = world.iter().cloned().map(|rank| async move {
        let (own, other) = (rank.communicator.rank(), 1 - rank.communicator.rank());
        let input = Tensor::from_slice([3], &[own as i32; 3]).unwrap().to_device(&device()).await.unwrap();
        let mut group = rank.communicator.group();
        let shape = Shape::new(&[3]).unwrap();
        let memory = |bytes| DeviceBufferMut::allocate(&device(), bytes).unwrap();
        for bytes in [8, 11, 13] {
            let refused = group.recv_into(memory(bytes), DType::Int32, shape, other).unwrap_err();
            assert!(
                refused.to_string().ends_with(&format!("can't be received into {bytes} bytes")),
                "{refused}"
            );
        }
        assert!(group.recv_into(memory(12), DType::Int32, shape, own).is_err());
        let to = memory(12);
        let address = to.address();
        group.recv_into(to, DType::Int32, shape, other).unwrap();
        group.send(&input, other).unwrap();
        let received = group.run(&rank.stream).await.unwrap();
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].device_buffer().unwrap().address(), address);
        assert_eq!(host(&received[0]).await.to_vec::<i32>().unwrap(), [other as i32; 3]);
    });
    all(exchanged.collect::<Vec<_>>()).await;
});

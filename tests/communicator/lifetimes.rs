//! Memory, and the end of communicators.

use std::sync::Arc;

use kvpipe::device::{DeviceBufferMut, Stream};
use kvpipe::nccl::Communicator;
use kvpipe::{DType, Error, Shape, Tensor};

use crate::child::{cuda, nccl};
use crate::world::{HANG, all, config, connected, device, library, world};

on_fakes!(dropping_a_communicator_lets_what_was_enqueued_finish, "", async || {
    let mut world = connected().await;
    let receiver = world.pop().unwrap();
    let sender = world.pop().unwrap();
    let content =
        Tensor::from_vec([1 << 20], vec![7_i32; 1 << 20]).unwrap().to_device(&device()).await.unwrap();
    let sending = tokio::spawn(async move {
        // More than the connection holds, so that it can't end before somebody receives.
        sender.communicator.send(&content, 1, &sender.stream).await
    });
    enqueued().await;
    sending.abort();
    // With it the sender's communicator was dropped.
    assert!(sending.await.unwrap_err().is_cancelled());
    let shape = Shape::new(&[1 << 20]).unwrap();
    let receiving = receiver.communicator.recv(DType::Int32, shape, 0, &receiver.stream);
    let received = tokio::time::timeout(HANG, receiving).await.expect("it hangs").unwrap();
    assert_eq!(received.to_host().await.unwrap().to_vec::<i32>().unwrap(), vec![7; 1 << 20]);
});

on_fakes!(dropping_one_whose_peer_never_answers_keeps_nobody, "", async || {
    let world = connected().await;
    let rank = Arc::clone(&world[0]);
    let waiting = tokio::spawn(async move {
        let shape = Shape::new(&[8]).unwrap();
        rank.communicator.recv(DType::Float32, shape, 1, &rank.stream).await
    });
    enqueued().await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    // What is left over is looked for by the harness: the thread finalizes in vain, and aborts.
    drop(world);
});

on_fakes!(what_an_abort_has_ended_is_no_success, "", async || {
    let world = connected().await;
    let shape = Shape::new(&[8]).unwrap();
    let rank = &world[0];
    let mut receiving = std::pin::pin!(rank.communicator.recv(DType::Float32, shape, 1, &rank.stream));
    loop {
        tokio::select! {
            biased;
            received = &mut receiving => panic!("nobody has sent anything: {received:?}"),
            () = tokio::task::yield_now() => if cuda().events > 0 { break },
        }
    }
    // After it the stream is done with the receive, as if it had succeeded.
    rank.communicator.abort(Error::Misuse("enough".into())).await.unwrap();
    assert_eq!(receiving.await.unwrap_err().to_string(), "enough");
});

on_fakes!(a_registration_that_is_given_up_is_taken_back, "", async || {
    let world = connected().await;
    let buffer = DeviceBufferMut::allocate(&device(), 4096).unwrap().freeze();
    for _ in 0..100 {
        tokio::select! {
            biased;
            registered = world[0].communicator.register_buffer(&buffer) => drop(registered.unwrap()),
            () = std::future::ready(()) => {}
        }
    }
    // The thread does them one after the other, and this one last.
    drop(world[0].communicator.register_buffer(&buffer).await.unwrap());
    while nccl().registered > 0 {
        tokio::task::yield_now().await;
    }
});

on_fakes!(nccls_own_memory_can_be_registered_as_a_window, "", async || {
    let world = world(2).await;
    let windows = world.iter().cloned().map(|rank| async move {
        let buffer = rank.communicator.allocate(1 << 16).await.unwrap().freeze();
        rank.communicator.register_window(&buffer).await.unwrap()
    });
    let windows = all(windows.collect::<Vec<_>>()).await;
    assert_eq!((nccl().allocations, nccl().registered), (2, 2));
    drop(windows);
});

on_fakes!(an_operation_that_is_given_up_goes_on_and_frees_its_memory, "", async || {
    let world = connected().await;
    let before = cuda();
    let (sender, receiver) = (Arc::clone(&world[0]), Arc::clone(&world[1]));
    let shape = Shape::new(&[1 << 20]).unwrap();
    let receiving =
        tokio::spawn(
            async move { receiver.communicator.recv(DType::Int32, shape, 0, &receiver.stream).await },
        );
    enqueued().await;
    receiving.abort();
    assert!(receiving.await.unwrap_err().is_cancelled());
    let tensor =
        Tensor::from_vec([1 << 20], vec![7_i32; 1 << 20]).unwrap().to_device(&device()).await.unwrap();
    // More than the connection holds: it returns because somebody receives.
    sender.communicator.send(&tensor, 1, &sender.stream).await.unwrap();
    drop(tensor);
    while cuda().allocations != before.allocations {
        tokio::task::yield_now().await;
    }
});

on_fakes!(forming_one_that_is_given_up_leaves_nothing, "", async || {
    let id = library().unique_id().unwrap();
    let forming = Communicator::with_unique_id(id, [0, 2], device(), library(), config());
    tokio::select! {
        biased;
        formed = forming => panic!("formed alone: {formed:?}"),
        () = async { while nccl().communicators == 0 { tokio::task::yield_now().await } } => {}
    }
});

on_fakes!(memory_is_registered_until_the_registration_is_dropped, "", async || {
    let world = world(2).await;
    let registered = world.iter().cloned().map(|rank| async move {
        let buffer = DeviceBufferMut::allocate(&device(), 4096).unwrap().freeze();
        let window = rank.communicator.register_window(&buffer).await.unwrap();
        let plain = rank.communicator.register_buffer(&buffer).await.unwrap();
        (window, plain)
    });
    let registered = all(registered.collect::<Vec<_>>()).await;
    assert_eq!(nccl().registered, 4);
    drop(registered);
    while nccl().registered > 0 {
        tokio::task::yield_now().await;
    }
});

on_fakes!(ten_thousand_operations_leak_nothing, "", async || {
    let world = world(2).await;
    let before = cuda();
    let exchanges = world.iter().cloned().map(|rank| async move {
        let other = 1 - rank.communicator.rank();
        let tensor = Tensor::from_slice([16], &[1.5_f32; 16]).unwrap().to_device(&device()).await.unwrap();
        for _ in 0..2_500 {
            let mut group = rank.communicator.group();
            group.send(&tensor, other).unwrap();
            group.recv(DType::Float32, *tensor.shape(), other).await.unwrap();
            group.run(&rank.stream).await.unwrap();
        }
        drop(tensor);
    });
    all(exchanges.collect::<Vec<_>>()).await;
    while cuda() != before {
        tokio::task::yield_now().await;
    }
});

on_fakes!(a_stream_of_the_users_is_used_as_it_is, "", async || {
    let world = world(2).await;
    let stream = Stream::new(&device()).unwrap();
    let tensor = Tensor::from_slice([4], &[1_u8, 2, 3, 4]).unwrap().to_device(&device()).await.unwrap();
    let (sender, receiver) = (Arc::clone(&world[0]), Arc::clone(&world[1]));
    let sending = tokio::spawn(async move { sender.communicator.send(&tensor, 1, &stream).await });
    let receiving = receiver.communicator.recv(DType::UInt8, Shape::new(&[4]).unwrap(), 0, &receiver.stream);
    let received = tokio::time::timeout(HANG, receiving).await.expect("it hangs").unwrap();
    sending.await.unwrap().unwrap();
    assert_eq!(received.to_host().await.unwrap().to_vec::<u8>().unwrap(), [1, 2, 3, 4]);
    assert!(matches!(received.bytes(), Err(Error::Misuse(_))));
});

/// Waits until an operation is on its stream, on a device that had no other: an event is recorded behind it.
async fn enqueued() {
    while cuda().events == 0 {
        tokio::task::yield_now().await;
    }
}

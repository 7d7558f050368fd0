//! What every wire does, even one on which nothing comes back: both ends know how many items there are.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use kvpipe::{DType, Error, Item, Pipe, PipeConfig, Shape, Tensor};

use super::AnyBackend;
use super::support::{edge, number, numbered, pipes, poll_once, room};

/// Takes so many items.
async fn take(pipe: &Pipe, count: usize) -> Vec<Item> {
    let mut items = Vec::new();
    while items.len() < count {
        items.push(pipe.recv().await.unwrap());
    }
    items
}

pub async fn a_known_number_of_items_arrives_in_order_with_nones_in_their_places(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let sent: Vec<Item> =
        (0..600).map(|sequence| if sequence % 3 == 0 { None } else { numbered(sequence, 8) }).collect();
    for item in &sent {
        sender.send(item.clone()).await.unwrap();
    }
    assert_eq!(take(&receiver, sent.len()).await, sent);
    sender.flush().await.unwrap();
    assert!(poll_once(receiver.recv()).await.is_none(), "there is no item too many");
}

pub async fn large_and_small_payloads_arrive_whole(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let sizes = [8, 255, 256, 4096, (64 << 10) - 1, 64 << 10, (1 << 20) + 3, 9 << 20, 33 << 20];
    for (sequence, bytes) in (0..).zip(sizes) {
        let item = numbered(sequence, bytes);
        sender.send(item.clone()).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), item, "{bytes} bytes");
    }
}

pub async fn whatever_dtype_and_shape_is_accepted_survives(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let shapes: [&[usize]; 5] = [&[], &[0], &[2, 3], &[5, 0, 7], &[2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3]];
    let mut accepted = 0;
    for &dtype in DType::ALL {
        for dims in shapes {
            let shape = Shape::new(dims).unwrap();
            let payload = vec![1; shape.byte_len(dtype).unwrap()];
            let item = Some(Tensor::new(dtype, shape, payload.into()).unwrap());
            match sender.send(item.clone()).await {
                Ok(_) => assert_eq!(receiver.recv().await.unwrap(), item, "{dtype} {shape}"),
                Err(Error::Misuse(why)) => {
                    assert!(why.contains(&dtype.to_string()), "{why}");
                    continue;
                }
                Err(error) => panic!("{dtype} {shape}: {error}"),
            }
            accepted += 1;
        }
    }
    assert!(accepted >= 12 * shapes.len(), "only {accepted} items were accepted");
}

pub async fn both_directions_carry_a_known_number_of_items_at_once(backend: AnyBackend) {
    let (left, right) = pipes(&backend, room(4_000)).await;
    let send = async |pipe: &Pipe, first: u64| {
        for sequence in first..first + 50 {
            pipe.send(numbered(sequence, 1_000)).await.unwrap();
        }
    };
    let numbers = async |pipe: &Pipe| take(pipe, 50).await.iter().map(number).collect::<Vec<_>>();
    let ((), (), at_left, at_right) =
        tokio::join!(send(&left, 0), send(&right, 1_000), numbers(&left), numbers(&right));
    assert_eq!(at_right, (0..50).collect::<Vec<_>>());
    assert_eq!(at_left, (1_000..1_050).collect::<Vec<_>>());
}

/// vLLM's pipe has one thread for both directions: a rank that waits for an item can't send one.
pub async fn two_ends_that_both_receive_first_still_get_what_is_sent_then(backend: AnyBackend) {
    let (left, right) = pipes(&backend, PipeConfig::default()).await;
    let receive_first = async |pipe: &Pipe, own: u64| {
        let (received, sent) = tokio::join!(pipe.recv(), pipe.send(numbered(own, 8)));
        sent.unwrap();
        number(&received.unwrap())
    };
    assert_eq!(tokio::join!(receive_first(&left, 1), receive_first(&right, 2)), (2, 1));
}

pub async fn a_close_returns_once_everything_is_out_of_our_hands(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    for sequence in 0..10 {
        sender.send(numbered(sequence, 100)).await.unwrap();
    }
    let (closed, received) = tokio::join!(sender.close(), take(&receiver, 10));
    closed.unwrap();
    assert_eq!(received.len(), 10);
    assert_eq!(sender.undelivered().len(), 0);
    receiver.close().await.unwrap();
    assert!(receiver.recv().await.is_err());
}

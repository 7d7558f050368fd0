//! What arrives is what was sent.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use kvpipe::{DType, Error, PipeConfig, Shape, Tensor};

use super::AnyBackend;
use super::support::{drain, drain_numbers, edge, number, numbered, pipes, receiving, room, sending, tensor};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

pub async fn items_arrive_in_order_with_their_contents(backend: AnyBackend) {
    let (left, right) = pipes(&backend, PipeConfig::default()).await;
    for sequence in 0..100 {
        assert_eq!(left.send(tensor(1000, sequence)).await.unwrap(), sequence);
    }
    for sequence in 0..100 {
        assert_eq!(right.recv().await.unwrap(), tensor(1000, sequence));
    }
}

pub async fn none_keeps_its_place_between_tensors(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let sent = [None, tensor(8, 1), None, None, tensor(8, 2), tensor(0, 3), None];
    for item in &sent {
        sender.send(item.clone()).await.unwrap();
    }
    sender.sender().unwrap().finish();
    let (received, end) = drain(&receiver).await;
    assert_eq!(received, sent);
    assert!(end.is_closed(), "{end}");
}

pub async fn every_size_from_nothing_to_64_mib_arrives_whole(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let sizes = [
        0,
        1,
        63,
        64,
        65,
        4 * KIB - 1,
        4 * KIB,
        4 * KIB + 1,
        64 * KIB - 1,
        64 * KIB,
        64 * KIB + 1,
        MIB + 7,
        16 * MIB,
        64 * MIB,
        0,
        1,
    ];
    for (seed, bytes) in sizes.into_iter().enumerate() {
        let sent = tensor(bytes, seed as u64);
        sender.send(sent.clone()).await.unwrap();
        assert!(receiver.recv().await.unwrap() == sent, "{bytes} bytes were changed");
    }
}

pub async fn dtype_and_shape_survive(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let shapes: [&[usize]; 5] = [&[], &[0], &[2, 3], &[5, 0, 7], &[2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3]];
    let mut sent = 0;
    for &dtype in DType::ALL {
        for dims in shapes {
            let shape = Shape::new(dims).unwrap();
            let payload = vec![0x5A; shape.byte_len(dtype).unwrap()];
            let item = Some(Tensor::new(dtype, shape, payload.into()).unwrap());
            sender.send(item.clone()).await.unwrap();
            assert_eq!(receiver.recv().await.unwrap(), item, "{dtype} {shape}");
            sent += 1;
        }
    }
    assert_eq!(receiver.stats().receive.unwrap().taken_items, sent);
}

pub async fn thousands_of_tiny_items_arrive(backend: AnyBackend) {
    const ITEMS: u64 = 10_000;
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let sending = tokio::spawn(async move {
        for sequence in 0..ITEMS {
            let item = if sequence % 3 == 0 { None } else { numbered(sequence, 8) };
            sender.send(item).await.unwrap();
        }
        sender.close().await
    });
    for sequence in 0..ITEMS {
        match receiver.recv().await.unwrap() {
            None => assert_eq!(sequence % 3, 0),
            item => assert_eq!(number(&item), sequence),
        }
    }
    assert!(receiver.recv().await.unwrap_err().is_closed());
    sending.await.unwrap().unwrap();
}

pub async fn an_item_larger_than_budget_and_window_goes_alone_and_arrives(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, room(64 * KIB)).await;
    let sent = [tensor(KIB, 0), tensor(MIB, 1), tensor(KIB, 2), tensor(2 * MIB, 3), tensor(KIB, 4)];
    let sending = {
        let (sender, sent) = (sender.clone(), sent.clone());
        tokio::spawn(async move {
            for item in sent {
                sender.send(item).await?;
            }
            sender.close().await
        })
    };
    for item in &sent {
        assert_eq!(receiver.recv().await.unwrap(), *item);
    }
    sending.await.unwrap().unwrap();
    // Not a byte beside the largest.
    assert_eq!(sender.stats().send.unwrap().held_bytes_max, 2 * MIB);
    assert_eq!(receiver.stats().receive.unwrap().held_bytes_max, 2 * MIB);
}

pub async fn an_item_over_the_limit_is_refused_by_the_sender_and_harms_nothing(backend: AnyBackend) {
    let config = PipeConfig { max_item_bytes: 1000, ..PipeConfig::default() };
    let (sender, receiver) = edge(&backend, config).await;
    let refused = |result| {
        assert!(matches!(result, Err(Error::TooLarge { bytes: 1001, limit: 1000 })), "{result:?}");
    };
    sender.send(numbered(0, 1000)).await.unwrap();
    refused(sender.send(numbered(9, 1001)).await);
    refused(sender.try_send(numbered(9, 1001)));
    refused(sender.reserve(1001).await.map(|_| 0));
    sender.send(numbered(1, 1000)).await.unwrap();
    sender.sender().unwrap().finish();
    let (received, end) = drain_numbers(&receiver).await;
    assert_eq!(received, [0, 1]);
    assert!(end.is_closed(), "{end}");
}

pub async fn item_limits_that_differ_are_found_out_before_an_item_arrives(backend: AnyBackend) {
    let (outgoing, incoming) = backend.edge().await;
    let limit = |max_item_bytes| PipeConfig { max_item_bytes, ..PipeConfig::default() };
    let (sender, _) = sending(outgoing, limit(1001));
    // Before there is anybody who could refuse it.
    sender.send(numbered(0, 1001)).await.unwrap();
    let (receiver, _) = receiving(incoming, limit(1000));

    let told = sender.close().await.unwrap_err();
    assert!(matches!(told, Error::PeerAborted { .. } | Error::PeerIncompatible { .. }), "{told}");
    assert!(told.to_string().contains("1000"), "{told}");
    assert_eq!(sender.undelivered().len(), 1);
    let refused = receiver.recv().await.unwrap_err();
    let by_name = matches!(refused, Error::PeerMisbehaved { .. } | Error::PeerIncompatible { .. });
    assert!(by_name && refused.to_string().contains("1000"), "{refused}");
    assert_eq!(receiver.stats().receive.unwrap().held_bytes_max, 0, "refused before it is allocated");
}

//! Memory, and what is copied there and back.

use kvpipe::Error;
use kvpipe::device::{CudaDevice, DeviceBufferMut, PinnedBuffer, Staging, Stream, to_device, to_host};

use crate::support::{Gate, content, eventually, is_done_at_once, live, on_device, on_gpu, read};

/// A piece of a copy through staging.
const PIECE: usize = 1 << 20;

#[test]
fn every_length_comes_back_as_it_went() {
    let name = "copies::every_length_comes_back_as_it_went";
    on_gpu(name, "slow=50", async |device| {
        let mut staging = Staging::new(&device).unwrap();
        let around = |length: usize| [length - 1, length, length + 1];
        let lengths = [0, 1, 255].into_iter().chain(around(64 << 10)).chain(around(PIECE));
        for length in lengths.chain(around(4 * PIECE)).chain([9 * PIECE + 7, 100]) {
            let sent = content(length, 7);
            let buffer = staging.to_device(&sent).await.unwrap();
            assert_eq!((buffer.len(), buffer.is_empty(), buffer.address() % 256), (length, length == 0, 0));
            let mut received = vec![1; length];
            staging.to_host(&buffer, &mut received).await.unwrap();
            assert!(sent == received, "{length} bytes");
        }
        assert!(live().pinned <= 4, "{:?}", live());
    });
}

#[test]
fn a_copy_takes_four_pieces_of_pinned_memory_and_has_all_of_them_on_their_way() {
    let name = "copies::a_copy_takes_four_pieces_of_pinned_memory_and_has_all_of_them_on_their_way";
    on_gpu(name, "", async |device| {
        let buffer = on_device(&device, 12 * PIECE, 1).await;
        eventually(|| live().pinned == 0).await;
        let stream = Stream::new(&device).unwrap();
        let gate = Gate::on(&stream);
        let mut staging = Staging::on(stream);
        let mut bytes = vec![0; buffer.len()];
        let mut copying = Box::pin(staging.to_host(&buffer, &mut bytes));
        while live().pinned < 4 {
            assert!(!is_done_at_once(&mut copying).await);
            tokio::task::yield_now().await;
        }
        gate.open();
        copying.await.unwrap();
        assert_eq!(live().pinned, 4);
        assert!(bytes == content(12 * PIECE, 1));
    });
}

#[test]
fn staging_serves_on_after_a_copy_that_was_given_up() {
    let name = "copies::staging_serves_on_after_a_copy_that_was_given_up";
    on_gpu(name, "", async |device| {
        let buffer = on_device(&device, 6 * PIECE, 2).await;
        let stream = Stream::new(&device).unwrap();
        let mut staging = Staging::on(stream.clone());
        for _ in 0..2 {
            let before = live().pinned;
            let gate = Gate::on(&stream);
            let mut bytes = vec![0; buffer.len()];
            {
                let mut copying = Box::pin(staging.to_host(&buffer, &mut bytes));
                while live().pinned < before.max(4) {
                    assert!(!is_done_at_once(&mut copying).await);
                    tokio::task::yield_now().await;
                }
                assert!(!is_done_at_once(&mut copying).await);
            }
            {
                let source = content(6 * PIECE, 3);
                let mut copying = Box::pin(staging.to_device(&source));
                for _ in 0..1000 {
                    assert!(!is_done_at_once(&mut copying).await);
                }
            }
            // The host memory is gone, and the device is not done.
            drop(bytes);
            gate.open();
            let mut bytes = vec![0; buffer.len()];
            staging.to_host(&buffer, &mut bytes).await.unwrap();
            assert!(bytes == content(6 * PIECE, 2));
        }
    });
}

#[test]
fn a_buffer_is_read_only_after_its_producer() {
    let name = "copies::a_buffer_is_read_only_after_its_producer";
    on_gpu(name, "", async |device| {
        let producer = Stream::new(&device).unwrap();
        let gate = Gate::on(&producer);
        let (source, target) = (on_device(&device, 5000, 4).await, DeviceBufferMut::allocate(&device, 5000));
        let copy = producer.copy(&source, target.unwrap()).unwrap();
        let event = copy.event().clone();
        let (_, target) = {
            // As a producer does that hands out what it has only begun to make.
            gate.open();
            copy.done().await.unwrap()
        };
        let gate = Gate::on(&producer);
        let zeroed = producer.fill_zero(target).unwrap();
        let late = zeroed.event().clone();
        assert!(event.is_complete().unwrap() && !late.is_complete().unwrap());
        let buffer = source.clone().with_ready(late.clone());
        assert_eq!(buffer.ready().map(kvpipe::device::Event::raw), Some(late.raw()));
        assert_eq!(buffer, source);
        let mut reading = Box::pin(read(&buffer));
        for _ in 0..1000 {
            assert!(!is_done_at_once(&mut reading).await);
        }
        gate.open();
        assert!(reading.await == content(5000, 4));
        assert!(read(&zeroed.done().await.unwrap().freeze()).await == [0; 5000]);
    });
}

#[test]
fn pinned_memory_is_zero_and_goes_there_and_back() {
    let name = "copies::pinned_memory_is_zero_and_goes_there_and_back";
    on_gpu(name, "", async |device| {
        let stream = Stream::new(&device).unwrap();
        let mut pinned = PinnedBuffer::allocated(&device, 3000).await.unwrap();
        assert_eq!(pinned[..], [0; 3000]);
        pinned.copy_from_slice(&content(3000, 5));
        let target = DeviceBufferMut::allocated(&device, 2999).await.unwrap();
        let (mut pinned, target) = stream.copy_to_device(pinned, target).unwrap().done().await.unwrap();
        pinned.fill(9);
        let buffer = target.freeze();
        let (_, pinned) = stream.copy_to_host(&buffer, pinned).unwrap().done().await.unwrap();
        assert!(pinned[..2999] == content(2999, 5) && pinned[2999] == 9);
        let nothing = PinnedBuffer::allocate(&device, 0).unwrap();
        let none = DeviceBufferMut::allocate(&device, 0).unwrap();
        let (nothing, none) = stream.copy_to_device(nothing, none).unwrap().done().await.unwrap();
        assert!(nothing.is_empty() && none.is_empty());
    });
}

#[test]
fn slices_share_the_memory_and_end_within_it() {
    let name = "copies::slices_share_the_memory_and_end_within_it";
    on_gpu(name, "", async |device| {
        let buffer = on_device(&device, 1000, 6).await;
        let part = buffer.slice(100..=299).unwrap().slice(50..).unwrap();
        assert_eq!((part.address() - buffer.address(), part.len()), (150, 150));
        assert!(read(&part).await == content(1000, 6)[150..300]);
        assert_eq!(buffer.slice(..).unwrap(), buffer);
        assert_ne!(buffer.slice(1..).unwrap(), buffer);
        assert!(buffer.slice(1000..).unwrap().is_empty());
        for beyond in [buffer.slice(..1001), buffer.slice(1001..), buffer.slice(..=usize::MAX)] {
            let error = beyond.unwrap_err();
            assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        }
    });
}

#[test]
fn no_memory_is_an_error_that_says_where_and_nothing_is_lost() {
    let name = "copies::no_memory_is_an_error_that_says_where_and_nothing_is_lost";
    on_gpu(name, "oom=1000000", async |device| {
        let refused = |error: Error| {
            let Error::Cuda { call, code, text } = &error else { panic!("{error:?}") };
            assert_eq!((*call, *code), ("cuMemAlloc_v2", 2));
            assert!(text.starts_with("CUDA_ERROR_OUT_OF_MEMORY, ") && text.ends_with(" on cuda:0"), "{text}");
        };
        refused(DeviceBufferMut::allocate(&device, 1_000_001).unwrap_err());
        refused(DeviceBufferMut::allocated(&device, 1_000_001).await.unwrap_err());
        let stream = Stream::new(&device).unwrap();
        refused(to_device(vec![0; 1_000_001].into(), &stream).await.unwrap_err());
        let buffer = to_device(content(1_000_000, 8).into(), &stream).await.unwrap();
        let mut bytes = vec![0; 1_000_000];
        to_host(&buffer, &stream, &mut bytes).await.unwrap();
        assert!(bytes == content(1_000_000, 8));
    });
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_copied() {
    let name = "copies::what_does_not_fit_is_refused_before_anything_is_copied";
    on_gpu(name, "devices=2", async |device| {
        let other = CudaDevice::open(1).unwrap();
        let (stream, elsewhere) = (Stream::new(&device).unwrap(), Stream::new(&other).unwrap());
        let buffer = on_device(&device, 100, 9).await;
        let mut staging = Staging::new(&other).unwrap();
        let refused = |error: Error, what: &str| {
            assert!(matches!(error, Error::Misuse(_)), "{error:?}");
            assert_eq!(error.to_string(), what);
        };
        let wrong_device = "cuda:0 can't be copied from on a stream of cuda:1";
        refused(staging.to_host(&buffer, &mut [0; 100]).await.unwrap_err(), wrong_device);
        let pinned = || PinnedBuffer::allocate(&device, 99).unwrap();
        refused(elsewhere.copy_to_host(&buffer, pinned()).unwrap_err(), wrong_device);
        let too_long = "a copy of 100 bytes does not fit a buffer of 99";
        refused(stream.copy_to_host(&buffer, pinned()).unwrap_err(), too_long);
        let room = || DeviceBufferMut::allocate(&device, 99).unwrap();
        refused(stream.copy(&buffer, room()).unwrap_err(), too_long);
        let there = DeviceBufferMut::allocate(&other, 100).unwrap();
        refused(stream.copy(&buffer, there).unwrap_err(), "cuda:1 can't be copied to on a stream of cuda:0");
        refused(elsewhere.fill_zero(room()).unwrap_err(), "cuda:0 can't be filled on on a stream of cuda:1");
        let wide = DeviceBufferMut::allocate(&device, 100).unwrap();
        refused(stream.copy_to_device(pinned(), wide).unwrap_err(), too_long);
        let mut staging = Staging::new(&device).unwrap();
        let error = staging.to_host(&buffer, &mut [0; 99]).await.unwrap_err();
        refused(error, "100 bytes can't be copied to 99");
    });
}

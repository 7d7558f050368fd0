//! Copies, events, staging, and what is freed.

use std::sync::Arc;
use std::time::Duration;

use kvpipe::device::{Device, DeviceBufferMut, PinnedBuffer, Staging, Stream};
use tokio::time::{Instant, timeout};

use super::{gpu, runtime};

const PATIENCE: Duration = Duration::from_secs(60);

/// `len` bytes, no part of which is like another, nor like those of any other `mark`.
fn content(len: usize, mark: u64) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).flat_map(|word| (mark << 40 | word).to_le_bytes());
    words.take(len).collect()
}

#[test]
fn every_length_comes_back_as_it_went() {
    let Some(device) = gpu() else { return };
    runtime().block_on(async {
        let mut staging = Staging::new(&device).unwrap();
        let around = |length: usize| [length - 1, length, length + 1];
        let lengths = [0, 1, 255].into_iter().chain(around(1 << 20)).chain(around(4 << 20)).chain([67 << 20]);
        for (mark, length) in (0..).zip(lengths) {
            let sent = content(length, mark);
            let there = staging.to_device(&sent).await.unwrap();
            let mut received = vec![0; length];
            staging.to_host(&there, &mut received).await.unwrap();
            assert!(sent == received, "{length} bytes");
        }
    });
}

#[test]
fn work_on_streams_is_in_order_and_its_events_complete() {
    let Some(device) = gpu() else { return };
    runtime().block_on(async {
        let bytes = 256 << 20;
        let sent = content(bytes, 1);
        let source = Staging::new(&device).unwrap().to_device(&sent).await.unwrap();
        let (producer, mut staging) = (Stream::new(&device).unwrap(), Staging::new(&device).unwrap());
        let target = DeviceBufferMut::allocated(&device, bytes).await.unwrap();
        let mut target = Some(target);
        // A long line of work, the last of which makes the bytes that another stream reads.
        for _ in 0..20 {
            let zeroed = producer.fill_zero(target.take().unwrap()).unwrap();
            target = Some(zeroed.done().await.unwrap());
        }
        let copying = producer.copy(&source, target.take().unwrap()).unwrap();
        let ready = copying.event().clone();
        let (_, target) = copying.done().await.unwrap();
        assert!(ready.is_complete().unwrap());
        let target = target.freeze().with_ready(ready);
        let mut received = vec![0; bytes];
        staging.to_host(&target, &mut received).await.unwrap();
        assert!(sent == received);
    });
}

#[test]
fn what_is_dropped_in_flight_is_freed_when_the_stream_is_done() {
    let Some(device) = gpu() else { return };
    runtime().block_on(async {
        let stream = Stream::new(&device).unwrap();
        let source = Staging::new(&device).unwrap().to_device(&content(64 << 20, 2)).await.unwrap();
        let before = device.memory().unwrap().free;
        for _ in 0..50 {
            let target = DeviceBufferMut::allocated(&device, source.len()).await.unwrap();
            drop(stream.copy(&source, target).unwrap());
            let pinned = PinnedBuffer::allocated(&device, 1 << 20).await.unwrap();
            drop(stream.copy_to_host(&source.slice(..1 << 20).unwrap(), pinned).unwrap());
        }
        is_free_again(&device, before).await;
    });
}

#[test]
fn ten_thousand_buffers_leave_nothing_behind() {
    let Some(device) = gpu() else { return };
    runtime().block_on(async {
        let mut staging = Staging::new(&device).unwrap();
        let bytes = content(1 << 20, 3);
        drop(staging.to_device(&bytes).await.unwrap());
        let before = device.memory().unwrap().free;
        for _ in 0..10_000 {
            drop(staging.to_device(&bytes).await.unwrap());
        }
        is_free_again(&device, before).await;
    });
}

/// Memory is freed by a thread, after it was dropped.
async fn is_free_again(device: &Arc<dyn Device>, before: usize) {
    let waiting = async {
        // Others may use the GPU, too; what leaked here would be far more.
        while device.memory().unwrap().free + (32 << 20) < before {
            tokio::task::yield_now().await;
        }
    };
    let waited = timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{before} bytes were free before, {:?} now", device.memory());
}

/// Beside one copy of all the bytes between the GPU and pinned memory, which is as fast as can be.
#[test]
fn staging_beside_a_plain_copy_of_pinned_memory() {
    let Some(device) = gpu() else { return };
    runtime().block_on(async {
        let bytes: usize = 256 << 20;
        let stream = Stream::new(&device).unwrap();
        let mut staging = Staging::new(&device).unwrap();
        let mut host = content(bytes, 4);
        let mut pinned = Some(PinnedBuffer::allocated(&device, bytes).await.unwrap());
        let there = staging.to_device(&host).await.unwrap();
        let (mut plain, mut staged, mut uploaded) = (Duration::MAX, Duration::MAX, Duration::MAX);
        for _ in 0..5 {
            let begin = Instant::now();
            let flight = stream.copy_to_host(&there, pinned.take().unwrap()).unwrap();
            pinned = Some(flight.done().await.unwrap().1);
            plain = plain.min(begin.elapsed());
            let begin = Instant::now();
            staging.to_host(&there, &mut host).await.unwrap();
            staged = staged.min(begin.elapsed());
            let begin = Instant::now();
            let again = staging.to_device(&host).await.unwrap();
            uploaded = uploaded.min(begin.elapsed());
            drop(again);
        }
        assert!(pinned.unwrap()[..] == host[..]);
        let speed = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
        println!(
            "{}: pinned {:.1} GB/s; staged to the host {:.1} GB/s, {:.2} of it; to the device {:.1} GB/s",
            device.name(),
            speed(plain),
            speed(staged),
            plain.as_secs_f64() / staged.as_secs_f64(),
            speed(uploaded),
        );
    });
}

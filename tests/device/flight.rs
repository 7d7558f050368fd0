//! What a stream still uses.

use kvpipe::device::{DeviceBuffer, DeviceBufferMut, Event, PinnedBuffer, Stream};

use crate::support::{Gate, content, eventually, is_done_at_once, live, on_device, on_gpu, read};

#[test]
fn what_is_dropped_in_flight_is_kept_until_the_stream_is_done() {
    let name = "flight::what_is_dropped_in_flight_is_kept_until_the_stream_is_done";
    on_gpu(name, "", async |device| {
        let stream = Stream::new(&device).unwrap();
        let buffer = on_device(&device, 1000, 1).await;
        eventually(|| live().pinned == 0).await;
        let gate = Gate::on(&stream);
        let pinned = || PinnedBuffer::allocate(&device, 1000).unwrap();
        let mut awaited = Box::pin(stream.copy_to_host(&buffer, pinned()).unwrap().done());
        assert!(!is_done_at_once(&mut awaited).await);
        drop(awaited);
        drop(stream.copy_to_host(&buffer, pinned()).unwrap());
        let target = DeviceBufferMut::allocate(&device, 1000).unwrap();
        drop(stream.copy_to_device(pinned(), target).unwrap());
        drop(buffer);
        // Another stream is done meanwhile, and what it used is freed.
        let other = Stream::new(&device).unwrap();
        drop(other.in_flight(pinned()).unwrap());
        eventually(|| live().pinned == 3).await;
        assert_eq!((live().pinned, live().allocations, live().misuses), (3, 2, 0));
        gate.open();
        eventually(|| (live().pinned, live().allocations) == (0, 0)).await;
    });
}

#[test]
fn a_panic_in_what_is_dropped_does_not_end_the_thread() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("a user's drop");
        }
    }
    let name = "flight::a_panic_in_what_is_dropped_does_not_end_the_thread";
    on_gpu(name, "", async |device| {
        let stream = Stream::new(&device).unwrap();
        let gate = Gate::on(&stream);
        drop(stream.in_flight(Panics).unwrap());
        let behind = stream.record().unwrap();
        gate.open();
        behind.completed().await.unwrap();
        drop(stream.in_flight(PinnedBuffer::allocate(&device, 10).unwrap()).unwrap());
        eventually(|| live().pinned == 0).await;
    });
}

#[test]
fn foreign_memory_streams_and_events_are_used_and_left_alone() {
    let name = "flight::foreign_memory_streams_and_events_are_used_and_left_alone";
    on_gpu(name, "", async |device| {
        let theirs = on_device(&device, 1000, 3).await;
        let (stream, owner) = (Stream::new(&device).unwrap(), std::sync::Arc::new(()));
        let event = stream.record().unwrap();
        {
            // SAFETY: `theirs`, `stream` and `event` outlive it all.
            let (buffer, on, after) = unsafe {
                (
                    DeviceBuffer::from_raw(&device, theirs.address() + 100, 200, owner.clone()),
                    Stream::from_raw(&device, stream.raw(), owner.clone()),
                    Event::from_raw(&device, event.raw(), owner.clone()),
                )
            };
            assert_eq!((std::sync::Arc::strong_count(&owner), buffer.len()), (4, 200));
            assert_eq!(buffer, theirs.slice(100..300).unwrap());
            after.completed().await.unwrap();
            let room = DeviceBufferMut::allocate(&device, 1000).unwrap();
            let (_, copied) = on.copy(&buffer.with_ready(after), room).unwrap().done().await.unwrap();
            assert!(read(&copied.freeze().slice(..200).unwrap()).await == content(1000, 3)[100..300]);
        }
        eventually(|| std::sync::Arc::strong_count(&owner) == 1).await;
        assert!(read(&theirs).await == content(1000, 3));
        stream.record().unwrap().completed().await.unwrap();
    });
}

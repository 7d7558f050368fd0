//! Events, and the thread that polls them.

use std::fs;
use std::path::PathBuf;

use kvpipe::Error;
use kvpipe::device::{PinnedBuffer, Stream};
use tokio::time::timeout;

use crate::support::{Gate, PATIENCE, eventually, is_done_at_once, on_gpu};

#[test]
fn an_event_is_complete_after_what_is_before_it_and_not_sooner() {
    let name = "events::an_event_is_complete_after_what_is_before_it_and_not_sooner";
    on_gpu(name, "", async |device| {
        let (first, second) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
        let gate = Gate::on(&first);
        let event = first.record().unwrap();
        second.wait(&event).unwrap();
        let behind = second.record().unwrap();
        // The stream is where it can't go on.
        eventually(|| gate.is_reached()).await;
        for event in [&event, &behind] {
            assert!(!event.is_complete().unwrap());
            assert!(!is_done_at_once(event.completed()).await);
        }
        let waiting = tokio::spawn({
            let behind = behind.clone();
            async move { behind.completed().await }
        });
        gate.open();
        timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
        assert!(event.is_complete().unwrap() && behind.is_complete().unwrap());
        event.completed().await.unwrap();
    });
}

#[test]
fn events_complete_while_another_is_pending_and_in_any_number() {
    let name = "events::events_complete_while_another_is_pending_and_in_any_number";
    on_gpu(name, "", async |device| {
        let (stuck, stream) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
        let gate = Gate::on(&stuck);
        let pending = stuck.record().unwrap();
        let mut never = Box::pin(pending.completed());
        assert!(!is_done_at_once(&mut never).await);
        for _ in 0..300 {
            let events: Vec<_> = (0..10).map(|_| stream.record().unwrap()).collect();
            for event in events {
                timeout(PATIENCE, event.completed()).await.unwrap().unwrap();
            }
        }
        assert!(!is_done_at_once(&mut never).await);
        gate.open();
        timeout(PATIENCE, never).await.unwrap().unwrap();
    });
}

#[test]
fn waits_that_are_given_up_are_forgotten() {
    let name = "events::waits_that_are_given_up_are_forgotten";
    on_gpu(name, "", async |device| {
        let stream = Stream::new(&device).unwrap();
        let gate = Gate::on(&stream);
        let events: Vec<_> = (0..100).map(|_| stream.record().unwrap()).collect();
        for event in &events {
            assert!(!is_done_at_once(event.completed()).await);
        }
        // Destroyed, though not complete: the thread lets go of them.
        drop(events);
        eventually(|| crate::support::live().events == 0).await;
        gate.open();
    });
}

#[test]
fn work_that_fails_is_the_error_of_its_event_and_what_it_used_is_freed() {
    let name = "events::work_that_fails_is_the_error_of_its_event_and_what_it_used_is_freed";
    on_gpu(name, "fail=cuEventQuery:2+:719", async |device| {
        let stream = Stream::new(&device).unwrap();
        let event = stream.record().unwrap();
        let _ = event.is_complete().unwrap();
        let failed = |error: Error| {
            let Error::Cuda { call, code, text } = &error else { panic!("{error:?}") };
            assert_eq!((*call, *code), ("cuEventQuery", 719));
            assert!(text.starts_with("CUDA_ERROR_LAUNCH_FAILED, ") && text.ends_with(" on cuda:0"), "{text}");
        };
        failed(event.completed().await.unwrap_err());
        let flight = stream.in_flight(PinnedBuffer::allocate(&device, 10).unwrap()).unwrap();
        failed(flight.done().await.unwrap_err());
        drop(stream.in_flight(PinnedBuffer::allocate(&device, 10).unwrap()).unwrap());
    });
}

#[test]
fn the_thread_sleeps_while_no_event_is_pending() {
    let name = "events::the_thread_sleeps_while_no_event_is_pending";
    on_gpu(name, "", async |device| {
        let stream = Stream::new(&device).unwrap();
        let gate = Gate::on(&stream);
        let event = stream.record().unwrap();
        let mut waiting = Box::pin(event.completed());
        assert!(!is_done_at_once(&mut waiting).await);
        eventually(|| switches() > Some(0)).await;
        let busy = switches();
        eventually(|| switches() > busy.map(|busy| busy + 2)).await;
        gate.open();
        waiting.await.unwrap();
        // It has told us, and goes to sleep; whatever else happens does not wake it.
        let mut asleep = switches();
        let mut quiet_rounds = 0;
        while quiet_rounds < 2000 {
            drop(PinnedBuffer::allocated(&device, 4096).await.unwrap());
            let now = switches();
            quiet_rounds = if now == asleep { quiet_rounds + 1 } else { 0 };
            asleep = now;
        }
    });
}

/// How often the thread that polls events has given up the processor, once it has its name.
fn switches() -> Option<u64> {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let is_poller = |path: &PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "kvpipe-events")
    };
    let pollers: Vec<_> = threads.filter(is_poller).collect();
    assert!(pollers.len() <= 1, "there is one, whatever the number of events");
    let status = fs::read_to_string(pollers.first()?.join("status")).unwrap();
    let count = |line: &str| line.split_once(':').unwrap().1.trim().parse::<u64>().unwrap();
    Some(status.lines().filter(|line| line.contains("ctxt_switches")).map(count).sum())
}

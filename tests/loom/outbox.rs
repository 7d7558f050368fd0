//! The sending end: users against a scripted transport, with wake-ups that loom sees.

use kvpipe::transport::Outbox;
use kvpipe::{Error, Pipe};
use loom::future::block_on;
use loom::thread;

use crate::support::{
    Steps, budget, consumer, drain, explore, impatient, item, join, mark, poll_once, polled, producer,
};

const BOUND: usize = 3;

#[test]
fn items_come_out_in_order_through_a_budget_of_one() {
    explore("in_order", BOUND, || {
        let (pipe, driver) = Pipe::send_only(
            consumer(|items| {
                Box::pin(async move {
                    for expected in 0..2 {
                        let (sequence, item) = items.next().await?.unwrap();
                        assert_eq!((sequence, mark(&item)), (expected, expected as u8));
                        items.settle(sequence + 1);
                    }
                    assert!(items.next().await?.is_none());
                    Ok(())
                })
            }),
            budget(1),
        );
        let driver = thread::spawn(move || block_on(driver));
        assert_eq!(pipe.blocking_send(item(1, 0)).unwrap(), 0);
        assert_eq!(pipe.blocking_send(item(1, 1)).unwrap(), 1);
        assert_eq!(pipe.stats().send.unwrap().held_bytes_max, 1);
        pipe.blocking_close().unwrap();
        driver.join().unwrap();
    });
}

#[test]
fn closing_while_a_sender_waits() {
    explore("close_waiting", BOUND, || {
        // The transport holds the first item until the close, so the second sender can only wait.
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(1));
        pipe.try_send(item(1, 0)).unwrap();
        let waiting = pipe.clone();
        let sender = thread::spawn(move || waiting.blocking_send(item(1, 1)));
        pipe.sender().unwrap().finish();
        let sent = sender.join().unwrap();
        // Nobody drives, so the second item can't have found room.
        assert!(matches!(sent, Err(Error::Closed)), "{sent:?}");
        block_on(driver);
        assert!(pipe.undelivered().is_empty());
    });
}

#[test]
fn closing_while_a_sender_waits_and_the_transport_settles() {
    explore("close_settle_waiting", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(1));
        pipe.try_send(item(1, 0)).unwrap();
        let waiting = pipe.clone();
        let sender = thread::spawn(move || waiting.blocking_send(item(1, 1)).is_ok());
        let driver = thread::spawn(move || block_on(driver));
        pipe.blocking_close().unwrap();
        let accepted = sender.join().unwrap();
        driver.join().unwrap();
        // Accepted means delivered; refused means never seen.
        assert_eq!(pipe.stats().send.unwrap().delivered_items, 1 + u64::from(accepted));
    });
}

#[test]
fn failing_while_a_sender_waits() {
    explore("fail_waiting", BOUND, || {
        let (pipe, driver) = Pipe::send_only(
            consumer(|items| {
                Box::pin(async move {
                    items.next().await?;
                    Err(Error::Misuse("the wire broke".into()))
                })
            }),
            budget(1),
        );
        pipe.try_send(item(1, 0)).unwrap();
        let driver = thread::spawn(move || block_on(driver));
        let sent = pipe.blocking_send(item(1, 1));
        assert!(matches!(sent, Err(Error::Misuse(_))), "{sent:?}");
        driver.join().unwrap();
        let undelivered = pipe.undelivered();
        assert_eq!((undelivered.len(), undelivered[0].sequence, undelivered[0].in_doubt), (1, 0, true));
    });
}

#[test]
fn the_last_release_against_a_new_waiter() {
    explore("last_release", BOUND, || {
        let (pipe, driver) = Pipe::send_only(
            consumer(|items| {
                Box::pin(async move {
                    let (sequence, _) = items.next().await?.unwrap();
                    // Nothing else is ever settled before the waiter has come: this is its only wake-up.
                    items.settle(sequence + 1);
                    drain(items).await
                })
            }),
            budget(4),
        );
        pipe.try_send(item(4, 0)).unwrap();
        let driver = thread::spawn(move || block_on(driver));
        pipe.blocking_send(item(3, 1)).unwrap();
        pipe.blocking_close().unwrap();
        driver.join().unwrap();
    });
}

#[test]
fn two_waiters_of_different_size_are_served_in_order() {
    explore("two_waiters", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(4));
        pipe.try_send(item(2, 0)).unwrap();
        let behind = pipe.clone();
        block_on(async {
            let mut large = Box::pin(pipe.send(item(4, 1)));
            assert!(!poll_once(&mut large).await, "there is no room");
            // There would be room for the small one, but it came second.
            let small = thread::spawn(move || {
                let sent = behind.blocking_send(item(1, 2));
                behind.sender().unwrap().finish();
                sent
            });
            let (large, ()) = join(large, driver).await;
            assert_eq!(large.unwrap(), 1);
            assert_eq!(small.join().unwrap().unwrap(), 2);
        });
    });
}

#[test]
fn cancelling_a_waiting_send_passes_the_turn_on() {
    explore("cancel_waiting", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(4));
        pipe.try_send(item(2, 0)).unwrap();
        let behind = pipe.clone();
        let behind = thread::spawn(move || {
            // Fits at once, but may have come second: then only the cancellation lets it in.
            behind.blocking_send(item(1, 2)).unwrap()
        });
        block_on(async {
            let mut large = Box::pin(pipe.send(item(4, 1)));
            assert!(!poll_once(&mut large).await, "there is no room");
        });
        behind.join().unwrap();
        let stats = pipe.stats().send.unwrap();
        assert_eq!((stats.queued_items, stats.held_bytes), (2, 3));
        pipe.sender().unwrap().finish();
        block_on(driver);
    });
}

#[test]
fn the_driver_is_dropped_while_both_halves_wait() {
    explore("driver_dropped", BOUND, || {
        let (pipe, driver) = Pipe::new(
            consumer(drain),
            producer(|items| {
                Box::pin(async move {
                    items.closed().await;
                    Ok(())
                })
            }),
            budget(1),
        );
        pipe.try_send(item(1, 0)).unwrap();
        let sender = pipe.clone();
        let sender = thread::spawn(move || sender.blocking_send(item(1, 1)).unwrap_err());
        let dropper = thread::spawn(move || drop(driver));
        assert!(matches!(pipe.blocking_recv(), Err(Error::Misuse(_))));
        assert!(matches!(sender.join().unwrap(), Error::Misuse(_)));
        dropper.join().unwrap();
        assert_eq!(pipe.undelivered().len(), 1);
        assert!(!pipe.undelivered()[0].in_doubt, "nobody took it");
        assert!(pipe.blocking_close().is_err());
    });
}

#[test]
fn a_waiting_send_moves_to_another_task() {
    explore("moved_waiting", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(1));
        pipe.try_send(item(1, 0)).unwrap();
        let driver = thread::spawn(move || block_on(driver));
        let mut waiting = Box::pin(pipe.send(item(1, 1)));
        if !block_on(poll_once(&mut waiting)) {
            // Another waker: the first one wakes nobody any more.
            assert_eq!(block_on(waiting).unwrap(), 1);
        }
        pipe.sender().unwrap().finish();
        driver.join().unwrap();
    });
}

#[test]
fn a_flush_ends_with_the_acknowledgement_and_not_with_other_progress() {
    explore("flush_settled", BOUND, || {
        let (pipe, driver) = Pipe::send_only(
            consumer(|items| {
                Box::pin(async move {
                    let (sequence, _) = items.next().await?.unwrap();
                    items.progress();
                    items.settle(sequence + 1);
                    drain(items).await
                })
            }),
            budget(1),
        );
        pipe.try_send(item(1, 0)).unwrap();
        let driver = thread::spawn(move || block_on(driver));
        block_on(pipe.flush()).unwrap();
        assert_eq!(pipe.stats().send.unwrap().delivered_items, 1);
        pipe.sender().unwrap().finish();
        driver.join().unwrap();
    });
}

#[test]
fn two_flushes_wait_for_different_items() {
    explore("flush_two", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(2));
        pipe.try_send(item(1, 0)).unwrap();
        let early = pipe.clone();
        let early = thread::spawn(move || block_on(early.flush()));
        pipe.try_send(item(1, 1)).unwrap();
        let late = async {
            pipe.flush().await.unwrap();
            assert_eq!(pipe.stats().send.unwrap().delivered_items, 2);
            pipe.sender().unwrap().finish();
        };
        block_on(join(late, driver));
        early.join().unwrap().unwrap();
    });
}

#[test]
fn the_driver_is_dropped_during_a_flush_and_a_close() {
    explore("drop_flush_close", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(1));
        pipe.try_send(item(1, 0)).unwrap();
        let flushing = pipe.clone();
        let flushing = thread::spawn(move || block_on(flushing.flush()));
        let dropper = thread::spawn(move || drop(driver));
        assert!(matches!(pipe.blocking_close(), Err(Error::Misuse(_))));
        assert!(matches!(flushing.join().unwrap(), Err(Error::Misuse(_))));
        dropper.join().unwrap();
    });
}

/// One half of a transport waits for items while the other learns that the peer holds none of those
/// handed out.
fn rewind_at_the_end(items: &Outbox) -> Steps<'_> {
    Box::pin(async move {
        assert_eq!(items.next().await?.unwrap().0, 0);
        let (next, ()) = join(items.next(), async { items.rewind(0) }).await;
        let again = match next? {
            Some(again) => again,
            // The user's close came before it.
            None => items.next().await?.unwrap(),
        };
        assert_eq!(again.0, 0);
        items.settle(1);
        drain(items).await
    })
}

#[test]
fn a_rewind_while_the_transport_waits_for_the_next_item() {
    explore("rewind_next", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(rewind_at_the_end), budget(1));
        pipe.try_send(item(1, 0)).unwrap();
        let driver = thread::spawn(move || block_on(driver));
        // Nothing else wakes the transport.
        block_on(pipe.flush()).unwrap();
        pipe.sender().unwrap().finish();
        driver.join().unwrap();
    });
}

#[test]
fn a_rewind_while_the_user_closes() {
    explore("rewind_close", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(rewind_at_the_end), budget(1));
        pipe.try_send(item(1, 0)).unwrap();
        let driver = thread::spawn(move || block_on(driver));
        pipe.blocking_close().unwrap();
        driver.join().unwrap();
    });
}

#[test]
fn a_permit_is_dropped_while_a_sender_waits() {
    explore("permit_dropped", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(4));
        let permit = block_on(pipe.reserve(4)).unwrap();
        let waiting = pipe.clone();
        let waiting = thread::spawn(move || waiting.blocking_send(item(4, 1)));
        drop(permit);
        assert_eq!(waiting.join().unwrap().unwrap(), 0);
        pipe.sender().unwrap().finish();
        block_on(driver);
    });
}

#[test]
fn a_permit_is_sent_short_while_a_sender_waits() {
    explore("permit_short", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(4));
        let permit = block_on(pipe.reserve(4)).unwrap();
        let waiting = pipe.clone();
        let waiting = thread::spawn(move || waiting.blocking_send(item(3, 1)).unwrap());
        // What the permit does not need lets the other one in, before it or behind it.
        let sent = permit.send(item(1, 0)).unwrap();
        assert_eq!(sent + waiting.join().unwrap(), 1);
        assert_eq!(pipe.stats().send.unwrap().held_bytes, 4);
        pipe.sender().unwrap().finish();
        block_on(driver);
    });
}

#[test]
fn aborting_while_a_sender_and_the_transport_wait() {
    explore("abort_waiting", BOUND, || {
        let (pipe, driver) = Pipe::send_only(
            consumer(|items| {
                Box::pin(async move {
                    items.next().await?;
                    items.next().await?;
                    Ok(())
                })
            }),
            budget(1),
        );
        pipe.try_send(item(1, 0)).unwrap();
        let driver = thread::spawn(move || block_on(driver));
        let waiting = pipe.clone();
        let waiting = thread::spawn(move || waiting.blocking_send(item(1, 1)));
        pipe.sender().unwrap().abort("no more");
        assert!(matches!(waiting.join().unwrap(), Err(Error::Misuse(_))));
        driver.join().unwrap();
        assert_eq!(pipe.undelivered().len(), 1);
    });
}

#[test]
fn a_send_cancelled_at_each_point_passes_an_acknowledgement_on() {
    for polls in 1..=2 {
        explore(&format!("cancel_settle_{polls}"), 2, move || {
            let (pipe, driver) = Pipe::send_only(consumer(drain), budget(4));
            pipe.try_send(item(2, 0)).unwrap();
            let driver = thread::spawn(move || block_on(driver));
            let behind = pipe.clone();
            // Has no room before the acknowledgement, which may wake only the one in front.
            let behind = thread::spawn(move || behind.blocking_send(item(3, 2)).unwrap());
            let sent = block_on(polled(pipe.send(item(4, 1)), polls));
            let accepted = 2 + u64::from(sent.is_some_and(|sent| sent.is_ok()));
            behind.join().unwrap();
            pipe.blocking_close().unwrap();
            assert_eq!(pipe.stats().send.unwrap().delivered_items, accepted);
            driver.join().unwrap();
        });
    }
}

#[test]
fn what_is_undelivered_is_always_the_end_of_what_was_accepted() {
    explore("undelivered", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain), budget(2));
        pipe.try_send(item(1, 0)).unwrap();
        pipe.try_send(item(1, 1)).unwrap();
        let driver = thread::spawn(move || block_on(driver));
        let undelivered = pipe.undelivered();
        let sequences: Vec<_> = undelivered.iter().map(|item| item.sequence).collect();
        assert_eq!(sequences, (2 - sequences.len() as u64..2).collect::<Vec<_>>());
        assert!(undelivered.is_sorted_by_key(|item| !item.in_doubt), "what is in doubt comes first");
        pipe.sender().unwrap().finish();
        driver.join().unwrap();
        assert!(pipe.undelivered().is_empty());
    });
}

/// Takes and settles items; after the last one it waits for a peer that never says anything again.
fn drain_and_stay(items: &Outbox) -> Steps<'_> {
    Box::pin(async move {
        while let Some((sequence, _)) = items.next().await? {
            items.settle(sequence + 1);
        }
        Err(items.failed().await)
    })
}

#[test]
fn the_patience_of_a_close_ends_while_the_last_item_is_acknowledged() {
    explore("patience", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(drain_and_stay), impatient(1));
        let driver = thread::spawn(move || block_on(driver));
        pipe.try_send(item(1, 0)).unwrap();
        match pipe.blocking_close() {
            Ok(()) => assert_eq!(pipe.stats().send.unwrap().delivered_items, 1),
            Err(error) => assert!(matches!(error, Error::Timeout { .. }), "{error}"),
        }
        driver.join().unwrap();
    });
}

#[test]
fn the_patience_with_a_failure_ends_though_the_transport_does_not() {
    explore("patience_failed", BOUND, || {
        let (pipe, driver) = Pipe::send_only(consumer(|_| Box::pin(std::future::pending())), impatient(1));
        let driver = thread::spawn(move || block_on(driver));
        drop(pipe);
        driver.join().unwrap();
    });
}

//! Models of one queue: a user at one end, a scripted transport at the other.

use kvpipe::{Error, Pipe};
use loom::future::block_on;
use loom::thread;

use crate::support::{budget, consumer, drain, explore, item, join, mark, poll_once, producer};

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
fn a_failure_stays_behind_queued_items() {
    explore("failure_behind_items", BOUND, || {
        let (pipe, driver) = Pipe::receive_only(
            producer(|items| {
                Box::pin(async move {
                    for mark in 0..2 {
                        items.reserve(1).await?.fill(item(1, mark))?;
                    }
                    Err(Error::Misuse("the wire broke".into()))
                })
            }),
            budget(2),
        );
        let driver = thread::spawn(move || block_on(driver));
        // Both were filled, and a real transport has acknowledged them.
        assert_eq!(mark(&pipe.blocking_recv().unwrap()), 0);
        assert_eq!(mark(&pipe.blocking_recv().unwrap()), 1);
        assert!(matches!(pipe.blocking_recv(), Err(Error::Misuse(_))));
        driver.join().unwrap();
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
fn dropping_the_pipe_during_a_recv_elsewhere() {
    explore("drop_during_recv", BOUND, || {
        let (pipe, driver) = Pipe::receive_only(
            producer(|items| {
                Box::pin(async move {
                    items.reserve(1).await?.fill(item(1, 7))?;
                    items.closed().await;
                    Ok(())
                })
            }),
            budget(1),
        );
        let driver = thread::spawn(move || block_on(driver));
        let other = pipe.clone();
        let other = thread::spawn(move || {
            block_on(async {
                let mut cancelled = Box::pin(other.recv());
                poll_once(&mut cancelled).await
            })
        });
        // Either of the two takes it; a cancelled wait must hand the wake-up on.
        if other.join().unwrap() {
            drop(pipe);
        } else {
            assert_eq!(mark(&pipe.blocking_recv().unwrap()), 7);
            drop(pipe);
        }
        driver.join().unwrap();
    });
}

#[test]
fn two_receivers_and_two_items() {
    explore("two_receivers", BOUND, || {
        let (pipe, driver) = Pipe::receive_only(
            producer(|items| {
                Box::pin(async move {
                    items.reserve(1).await?.fill(item(1, 1))?;
                    items.reserve(1).await?.fill(item(1, 2))?;
                    items.drained().await;
                    Ok(())
                })
            }),
            budget(2),
        );
        let other = pipe.clone();
        let other = thread::spawn(move || other.blocking_recv().map_or(0, |item| mark(&item)));
        let (mine, ()) = block_on(join(
            async {
                let mut mine = 0;
                while let Ok(item) = pipe.recv().await {
                    mine += mark(&item);
                }
                mine
            },
            driver,
        ));
        // Whoever took which: both were taken, and nobody waits for ever.
        assert_eq!(mine + other.join().unwrap(), 3);
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

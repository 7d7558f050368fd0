//! The receiving end: users against a scripted transport, with wake-ups that loom sees.

use kvpipe::{Error, Pipe};
use loom::future::block_on;
use loom::thread;

use crate::support::{budget, explore, impatient, item, join, mark, poll_once, polled, producer};

const BOUND: usize = 3;

/// A future polled so often, at most, and dropped before or after the first wake-up: these are the
/// points at which a wait can be cancelled.
const POLLS: std::ops::RangeInclusive<usize> = 0..=2;

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
fn a_recv_cancelled_at_each_point_leaves_the_item_to_another() {
    for polls in POLLS {
        explore(&format!("recv_cancelled_fill_{polls}"), 2, move || {
            let (pipe, driver) = Pipe::receive_only(
                producer(|items| {
                    Box::pin(async move {
                        items.reserve(1).await?.fill(item(1, 7))?;
                        items.drained().await;
                        Ok(())
                    })
                }),
                budget(1),
            );
            let driver = thread::spawn(move || block_on(driver));
            let other = pipe.clone();
            let other = thread::spawn(move || block_on(polled(other.recv(), polls)));
            let mine = pipe.blocking_recv();
            let theirs = other.join().unwrap();
            assert!(matches!(mine, Ok(_) | Err(Error::Closed)), "{mine:?}");
            assert!(matches!(theirs, None | Some(Ok(_) | Err(Error::Closed))), "{theirs:?}");
            let taken = u8::from(mine.is_ok()) + u8::from(matches!(theirs, Some(Ok(_))));
            assert_eq!(taken, 1);
            driver.join().unwrap();
        });
    }
}

#[test]
fn a_recv_cancelled_at_each_point_during_a_failure() {
    for polls in POLLS {
        explore(&format!("recv_cancelled_fail_{polls}"), BOUND, move || {
            let (pipe, driver) = Pipe::receive_only(
                producer(|items| {
                    Box::pin(async move {
                        items.reserve(1).await?.fill(item(1, 7))?;
                        Err(Error::Misuse("the wire broke".into()))
                    })
                }),
                budget(1),
            );
            let driver = thread::spawn(move || block_on(driver));
            // Whenever it is dropped, the item stays before the failure.
            let early = block_on(polled(pipe.recv(), polls));
            let item = early.unwrap_or_else(|| pipe.blocking_recv());
            assert_eq!(mark(&item.unwrap()), 7);
            let end = block_on(polled(pipe.recv(), polls)).unwrap_or_else(|| pipe.blocking_recv());
            assert!(matches!(end, Err(Error::Misuse(_))), "{end:?}");
            driver.join().unwrap();
        });
    }
}

#[test]
fn a_recv_cancelled_at_each_point_and_begun_again_beside_another() {
    for polls in POLLS {
        explore(&format!("recv_cancelled_again_{polls}"), 2, move || {
            let (pipe, driver) = Pipe::receive_only(
                producer(|items| {
                    Box::pin(async move {
                        items.reserve(1).await?.fill(item(1, 1))?;
                        items.reserve(1).await?.fill(item(1, 2))
                    })
                }),
                budget(1),
            );
            let driver = thread::spawn(move || block_on(driver));
            let other = pipe.clone();
            let other = thread::spawn(move || mark(&other.blocking_recv().unwrap()));
            let early = block_on(polled(pipe.recv(), polls));
            let mine = mark(&early.unwrap_or_else(|| pipe.blocking_recv()).unwrap());
            assert_eq!(mine + other.join().unwrap(), 3);
            driver.join().unwrap();
        });
    }
}

#[test]
fn a_reservation_cancelled_at_each_point_gives_its_room_back() {
    for polls in POLLS {
        explore(&format!("reserve_cancelled_{polls}"), BOUND, move || {
            let (pipe, driver) = Pipe::receive_only(
                producer(move |items| {
                    Box::pin(async move {
                        items.reserve(1).await?.fill(item(1, 1))?;
                        drop(polled(items.reserve(1), polls).await);
                        items.reserve(1).await?.fill(item(1, 2))
                    })
                }),
                budget(1),
            );
            let driver = thread::spawn(move || block_on(driver));
            assert_eq!(mark(&pipe.blocking_recv().unwrap()), 1);
            assert_eq!(mark(&pipe.blocking_recv().unwrap()), 2);
            assert!(matches!(pipe.blocking_recv(), Err(Error::Closed)));
            assert_eq!(pipe.stats().receive.unwrap().held_bytes, 0);
            driver.join().unwrap();
        });
    }
}

#[test]
fn a_reservation_cancelled_at_each_point_while_the_user_leaves() {
    for polls in POLLS {
        explore(&format!("reserve_cancelled_left_{polls}"), BOUND, move || {
            let (pipe, driver) = Pipe::receive_only(
                producer(move |items| {
                    Box::pin(async move {
                        items.reserve(1).await?.fill(item(1, 1))?;
                        match polled(items.reserve(1), polls).await {
                            Some(Ok(_)) => panic!("the item before it was not taken"),
                            Some(Err(error)) => assert!(matches!(error, Error::Closed)),
                            None => assert!(matches!(items.reserve(1).await, Err(Error::Closed))),
                        }
                        Ok(())
                    })
                }),
                budget(1),
            );
            let leaving = thread::spawn(move || drop(pipe));
            block_on(driver);
            leaving.join().unwrap();
        });
    }
}

#[test]
fn the_last_item_is_taken_while_the_transport_waits_for_that() {
    explore("drained", BOUND, || {
        let (pipe, driver) = Pipe::receive_only(
            producer(|items| {
                Box::pin(async move {
                    items.reserve(1).await?.fill(item(1, 1))?;
                    assert!(items.drained().await);
                    assert_eq!(items.taken(), 1);
                    Ok(())
                })
            }),
            budget(1),
        );
        let driver = thread::spawn(move || block_on(driver));
        pipe.blocking_recv().unwrap();
        // It can't end before the item was taken.
        assert!(matches!(pipe.blocking_recv(), Err(Error::Closed)));
        driver.join().unwrap();
    });
}

#[test]
fn the_user_leaves_while_the_transport_waits_for_the_last_item_to_be_taken() {
    explore("drained_left", BOUND, || {
        let (pipe, driver) = Pipe::receive_only(
            producer(|items| {
                Box::pin(async move {
                    items.reserve(1).await?.fill(item(1, 1))?;
                    let drained = items.drained().await;
                    // It may also leave once it has taken the item.
                    assert!(!drained || items.taken() == 1);
                    Ok(())
                })
            }),
            budget(1),
        );
        let driver = thread::spawn(move || block_on(driver));
        // Takes it if it is there.
        let _ = pipe.try_recv();
        drop(pipe);
        driver.join().unwrap();
    });
}

#[test]
fn closing_while_an_item_arrives() {
    explore("close_filling", 2, || {
        let (pipe, driver) = Pipe::receive_only(
            producer(|items| {
                Box::pin(async move {
                    let permit = items.reserve(1).await?;
                    let filled = permit.fill(item(1, 1));
                    items.closed().await;
                    assert_eq!((items.taken(), items.spare_bytes()), (0, 1), "{filled:?}");
                    Ok(())
                })
            }),
            budget(1),
        );
        let driver = thread::spawn(move || block_on(driver));
        let waiting = pipe.clone();
        let waiting = thread::spawn(move || block_on(waiting.close()));
        pipe.blocking_close().unwrap();
        waiting.join().unwrap().unwrap();
        assert!(matches!(pipe.try_recv(), Err(Error::Closed)));
        driver.join().unwrap();
    });
}

#[test]
fn the_patience_with_a_transport_ends_once_the_user_has_left() {
    explore("patience_left", BOUND, || {
        let (pipe, driver) = Pipe::receive_only(producer(|_| Box::pin(std::future::pending())), impatient(1));
        let driver = thread::spawn(move || block_on(driver));
        pipe.blocking_close().unwrap();
        driver.join().unwrap();
    });
}

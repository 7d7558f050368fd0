//! What a transport learns from its queue, and how long a pipe waits for a transport. The clock stands
//! still until everybody waits.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use kvpipe::transport::{Inbox, Incoming, Outbox, Outgoing};
use kvpipe::{Error, Link, Pipe, PipeConfig, Result};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::support::item;

const PATIENCE: Duration = Duration::from_secs(30);

/// Far beyond the patience.
const HOUR: Duration = Duration::from_secs(3600);

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A transport that does what a test says. If it panics, the pipe fails.
struct Does<R>(R);

impl<R: for<'a> FnOnce(&'a Outbox) -> Running<'a> + Send + 'static> Outgoing for Does<R> {
    fn link(&self) -> Link {
        Link::new(0, 1)
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        (self.0)(items).await
    }
}

impl<R: for<'a> FnOnce(&'a Inbox) -> Running<'a> + Send + 'static> Incoming for Does<R> {
    fn link(&self) -> Link {
        Link::new(1, 0)
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        (self.0)(items).await
    }
}

fn config() -> PipeConfig {
    PipeConfig { close_timeout: PATIENCE, ..PipeConfig::default().with_buffer_bytes(100) }
}

fn sending(run: impl for<'a> FnOnce(&'a Outbox) -> Running<'a> + Send + 'static) -> (Pipe, JoinHandle<()>) {
    let (pipe, driver) = Pipe::send_only(Does(run), config());
    (pipe, tokio::spawn(driver))
}

fn receiving(run: impl for<'a> FnOnce(&'a Inbox) -> Running<'a> + Send + 'static) -> Pipe {
    let (pipe, driver) = Pipe::receive_only(Does(run), config());
    tokio::spawn(driver);
    pipe
}

/// What comes of it; a wait without end fails.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(HOUR, future).await.expect("nothing has moved for an hour")
}

async fn takes_longer_than<T>(time: Duration, future: impl Future<Output = T>) -> bool {
    timeout(time, future).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_transport_sees_the_items_how_many_they_are_and_the_end() {
    let (pipe, _driver) = sending(|items| {
        Box::pin(async move {
            for sequence in 0..3 {
                assert_eq!(items.next().await?, Some((sequence, None)));
            }
            assert_eq!((items.accepted(), items.settled(), items.is_closed()), (3, 0, false));
            items.settle(2);
            assert_eq!(items.settled(), 2);
            items.settle(3);
            assert_eq!(items.next().await?, None);
            assert!(items.is_closed());
            Ok(())
        })
    });
    for _ in 0..3 {
        pipe.try_send(None).unwrap();
    }
    within(pipe.flush()).await.unwrap();
    within(pipe.close()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_the_acknowledgement_however_long_and_a_close_for_the_end() {
    let (acknowledge, acknowledged) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let (pipe, _driver) = sending(|items| {
        Box::pin(async move {
            items.next().await?;
            acknowledged.await.unwrap();
            items.settle(1);
            ended.await.unwrap();
            Ok(())
        })
    });
    pipe.try_send(None).unwrap();
    assert!(takes_longer_than(HOUR, pipe.flush()).await);
    acknowledge.send(()).unwrap();
    within(pipe.flush()).await.unwrap();
    assert!(takes_longer_than(PATIENCE / 2, pipe.close()).await);
    end.send(()).unwrap();
    within(pipe.close()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_close_goes_on_waiting_while_something_moves_that_is_no_acknowledgement() {
    let (pipe, _driver) = sending(|items| {
        Box::pin(async move {
            items.next().await?;
            for _ in 0..5 {
                sleep(PATIENCE * 2 / 3).await;
                items.progress();
            }
            items.settle(1);
            Ok(())
        })
    });
    pipe.try_send(None).unwrap();
    within(pipe.close()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failure_ends_a_transport_that_does_not_heed_it() {
    let (pipe, driver) = sending(|_| Box::pin(pending()));
    pipe.try_send(None).unwrap();
    let sender = pipe.sender().unwrap();
    assert_eq!(sender.failure().map(drop), None);
    sender.abort("enough");
    within(driver).await.unwrap();
    let aborted = |error: &Error| error.to_string().ends_with("the stream was aborted: enough");
    assert!(sender.failure().as_ref().is_some_and(aborted));
    assert!(within(pipe.close()).await.as_ref().is_err_and(aborted));
    assert_eq!(pipe.undelivered().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_transport_sees_the_room_what_was_taken_and_that_the_user_left() {
    let (take, taking) = oneshot::channel();
    let (leave, leaving) = oneshot::channel();
    let pipe = receiving(|items| {
        Box::pin(async move {
            let permit = items.reserve(30).await?;
            assert_eq!((items.spare_bytes(), items.taken()), (70, 0));
            permit.fill(item(30, 1))?;
            assert!(takes_longer_than(HOUR, items.drained()).await);
            take.send(()).unwrap();
            assert!(items.drained().await);
            assert_eq!((items.spare_bytes(), items.taken()), (100, 1));

            items.reserve(0).await?.fill(None)?;
            assert!(takes_longer_than(HOUR, items.closed()).await);
            leave.send(()).unwrap();
            items.closed().await;
            assert!(!items.drained().await);
            Ok(())
        })
    });
    taking.await.unwrap();
    assert_eq!(pipe.recv().await.unwrap(), item(30, 1));
    leaving.await.unwrap();
    within(pipe.close()).await.unwrap();
    assert_eq!(pipe.receiver().unwrap().failure().map(drop), None);
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_ends_before_its_outbox_is_a_bug() {
    let (pipe, driver) = sending(|items| {
        Box::pin(async move {
            items.next().await?;
            items.settle(1);
            // The user has not closed: more may come.
            Ok(())
        })
    });
    pipe.try_send(None).unwrap();
    within(driver).await.unwrap();
    let failure = pipe.sender().unwrap().failure();
    assert!(matches!(failure, Some(Error::Bug(_))), "{failure:?}");

    let (pipe, _driver) = sending(|items| {
        Box::pin(async move {
            while items.next().await?.is_some() {}
            // Nothing is acknowledged.
            Ok(())
        })
    });
    pipe.try_send(None).unwrap();
    let closed = within(pipe.close()).await;
    assert!(matches!(closed, Err(Error::Bug(_))), "{closed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_close_that_gives_up_says_how_many_items_are_missing() {
    for (sent, missing) in [(2, "1 item"), (3, "2 items")] {
        let (pipe, _driver) = sending(|items| {
            Box::pin(async move {
                items.next().await?;
                items.settle(1);
                pending().await
            })
        });
        for _ in 0..sent {
            pipe.try_send(None).unwrap();
        }
        let late = within(pipe.close()).await.unwrap_err().to_string();
        assert!(late.ends_with(&format!("rank 1 to acknowledge the last {missing}")), "{late}");
    }
}

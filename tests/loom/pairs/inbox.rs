//! The receiving end: what users do, against each other and against what a transport does.

use std::pin::Pin;
use std::time::Duration;

use kvpipe::transport::{Inbox, Permit};
use kvpipe::{Item, Pipe};

use super::{
    Did, End, Script, Transport, Turn, Use, broken, cancelled, mark_of, now, shown, step,
    users_and_transport, users_and_users, users_and_users_and_transport,
};
use crate::support::{budget, item, producer};

/// A permit of a byte, and one item of [`HELD_BYTES`] or none, leave room for [`FILLED_BYTES`] only if
/// there is no item.
const WINDOW: usize = 4;
const HELD_BYTES: usize = 2;
const FILLED_BYTES: usize = 3;

#[test]
fn a_user_and_the_transport_at_the_receiving_end() {
    users_and_transport::<Receiving>();
}

#[test]
fn two_users_at_the_receiving_end() {
    users_and_users::<Receiving>();
}

#[test]
fn two_users_and_the_transport_at_the_receiving_end() {
    users_and_users_and_transport::<Receiving>();
}

struct Receiving;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Nothing,
    Queued,
}

type Act = for<'a> fn(&'a Inbox, Permit) -> Pin<Box<dyn Future<Output = Did> + Send + 'a>>;

impl End for Receiving {
    type Held = Held;
    type Act = Act;
    const NAME: &'static str = "receiving";
    const BEGINNINGS: &'static [Held] = &[Held::Nothing, Held::Queued];
    const USES: &'static [Use] = USES;
    const TURNS: &'static [Turn<Act>] = TURNS;
    const LOOKS: &'static [Turn<Act>] = LOOKS;

    fn begin(held: Held, act: Option<Act>) -> (Pipe, Transport) {
        let script = Script::default();
        let acting = script.clone();
        let (pipe, driver) = Pipe::receive_only(
            producer(move |items| {
                Box::pin(async move {
                    if held == Held::Queued {
                        items.reserve(HELD_BYTES).await?.fill(item(HELD_BYTES, 9))?;
                    }
                    let permit = items.reserve(1).await?;
                    step().await;
                    let did = match act {
                        Some(act) => act(items, permit).await,
                        None => std::future::pending().await,
                    };
                    acting.finish(did, || transport_sees(items)).await
                })
            }),
            budget(WINDOW),
        );
        (pipe, Transport::paused(driver, script))
    }

    fn user_sees(pipe: &Pipe) -> String {
        format!("{}, {}", stats(pipe), failure(pipe))
    }

    /// What is left, and how it ends.
    fn attempt(pipe: &Pipe) -> String {
        format!("{:?}", [(); 2].map(|()| received(pipe.try_recv())))
    }
}

const USES: &[Use] = &[
    Use::new("recv", |pipe| Box::pin(async move { received(pipe.recv().await) })),
    Use::new("try_recv", |pipe| Box::pin(async move { received(pipe.try_recv()) })),
    Use::new("recv cancelled", |pipe| {
        Box::pin(async move { format!("{:?}", cancelled(pipe.recv()).await.map(received)) })
    }),
    Use::new("recv_timeout", |pipe| {
        Box::pin(async move { received(pipe.recv_timeout(Duration::ZERO).await) })
    }),
    Use::new("close", |pipe| Box::pin(async move { shown(pipe.close().await) })),
    Use::look("stats", |pipe| Box::pin(async move { stats(&pipe) })),
    Use::look("failure", |pipe| Box::pin(async move { failure(&pipe) })),
    Use::last("drop", |pipe| {
        Box::pin(async move {
            drop(pipe);
            "dropped".into()
        })
    }),
];

const TURNS: &[Turn<Act>] = &[
    (
        "reserve, fill",
        Some(|items, kept| {
            Box::pin(async {
                let filled = match items.reserve(FILLED_BYTES).await {
                    Ok(permit) => permit.fill(item(FILLED_BYTES, 1)),
                    Err(error) => Err(error),
                };
                drop(kept);
                Did::Said(shown(filled))
            })
        }),
    ),
    (
        "reserve cancelled",
        Some(|items, _kept| {
            Box::pin(async {
                let reserved = cancelled(items.reserve(FILLED_BYTES)).await;
                Did::Said(format!("{:?}", reserved.map(|permit| shown(permit.map(drop)))))
            })
        }),
    ),
    ("fill", Some(|_, permit| Box::pin(async { Did::Said(shown(permit.fill(item(1, 2)))) }))),
    (
        "permit dropped",
        Some(|_, permit| {
            Box::pin(async {
                drop(permit);
                Did::Said("dropped".into())
            })
        }),
    ),
    (
        "closed",
        Some(|items, _kept| {
            Box::pin(async {
                items.closed().await;
                Did::Said("closed".into())
            })
        }),
    ),
    ("drained", Some(|items, _kept| Box::pin(async { Did::Said(items.drained().await.to_string()) }))),
    ("end well", Some(|_, _kept| Box::pin(async { Did::Ended(Ok(())) }))),
    ("end badly", Some(|_, _kept| Box::pin(async { Did::Ended(Err(broken())) }))),
    ("driver dropped", None),
];

const LOOKS: &[Turn<Act>] = &[
    ("taken", Some(|items, _kept| Box::pin(async { Did::Said(items.taken().to_string()) }))),
    ("spare_bytes", Some(|items, _kept| Box::pin(async { Did::Said(items.spare_bytes().to_string()) }))),
];

fn stats(pipe: &Pipe) -> String {
    let stats = pipe.stats().receive.unwrap();
    format!("{} taken, {} queued", stats.taken_items, stats.queued_bytes)
}

fn failure(pipe: &Pipe) -> String {
    format!("{:?}", pipe.receiver().unwrap().failure().map(|failure| failure.to_string()))
}

fn transport_sees(items: &Inbox) -> String {
    let room = now(items.reserve(WINDOW)).map(|permit| shown(permit.map(drop)));
    format!("{} taken, {} to spare, room for all: {room:?}", items.taken(), items.spare_bytes())
}

fn received(item: kvpipe::Result<Item>) -> String {
    shown(item.map(|item| mark_of(&item)))
}

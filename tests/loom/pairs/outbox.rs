//! The sending end: what users do, against each other and against what a transport does.

use std::pin::Pin;
use std::time::Duration;

use kvpipe::pipe::SendPermit;
use kvpipe::transport::Outbox;
use kvpipe::{Item, Pipe};

use super::{
    Did, End, Script, Transport, Turn, Use, broken, cancelled, mark_of, now, shown, step,
    users_and_transport, users_and_users, users_and_users_and_transport,
};
use crate::support::{budget, consumer, item};

/// One item of [`HELD_BYTES`] or none, and two permits of a byte or none, leave room for
/// [`SENT_BYTES`] only if there is no item.
const BUDGET: usize = 4;
const HELD_BYTES: usize = 2;
const SENT_BYTES: usize = 3;

#[test]
fn a_user_and_the_transport_at_the_sending_end() {
    users_and_transport::<Sending>();
}

#[test]
fn two_users_at_the_sending_end() {
    users_and_users::<Sending>();
}

#[test]
fn two_users_and_the_transport_at_the_sending_end() {
    users_and_users_and_transport::<Sending>();
}

struct Sending;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Nothing,
    Queued,
    InFlight,
}

type Act = for<'a> fn(&'a Outbox) -> Pin<Box<dyn Future<Output = Did> + Send + 'a>>;

impl End for Sending {
    type Held = Held;
    type Act = Act;
    const NAME: &'static str = "sending";
    const BEGINNINGS: &'static [Held] = &[Held::Nothing, Held::Queued, Held::InFlight];
    const USES: &'static [Use] = USES;
    const TURNS: &'static [Turn<Act>] = TURNS;
    const LOOKS: &'static [Turn<Act>] = LOOKS;

    fn begin(held: Held, act: Option<Act>) -> (Pipe, Transport) {
        let script = Script::default();
        let acting = script.clone();
        let (pipe, driver) = Pipe::send_only(
            consumer(move |items| {
                Box::pin(async move {
                    if held == Held::InFlight {
                        items.next().await?;
                    }
                    step().await;
                    let did = match act {
                        Some(act) => act(items).await,
                        None => std::future::pending().await,
                    };
                    acting.finish(did, || transport_sees(items)).await
                })
            }),
            budget(BUDGET),
        );
        if held != Held::Nothing {
            pipe.try_send(item(HELD_BYTES, 9)).unwrap();
        }
        (pipe, Transport::paused(driver, script))
    }

    fn user_sees(pipe: &Pipe) -> String {
        user_sees(pipe)
    }

    /// Is there really room, and nobody in line for it who is not there any more?
    fn attempt(pipe: &Pipe) -> String {
        shown(pipe.try_send(item(SENT_BYTES, 8)))
    }
}

const USES: &[Use] = &[
    Use::new("send", |pipe| Box::pin(async move { shown(pipe.send(item(SENT_BYTES, 1)).await) })),
    Use::new("try_send", |pipe| Box::pin(async move { shown(pipe.try_send(item(SENT_BYTES, 2))) })),
    Use::new("permit sent", |pipe| {
        let permit = permit(&pipe);
        Box::pin(async move { shown(permit.send(item(1, 3))) })
    }),
    Use::new("permit sent short", |pipe| {
        let permit = permit(&pipe);
        Box::pin(async move { shown(permit.send(None)) })
    }),
    Use::new("permit dropped", |pipe| {
        let permit = permit(&pipe);
        Box::pin(async move {
            drop(permit);
            "dropped".into()
        })
    }),
    Use::new("send cancelled", |pipe| {
        Box::pin(async move { format!("{:?}", cancelled(pipe.send(item(SENT_BYTES, 4))).await.map(shown)) })
    }),
    Use::new("send_timeout", |pipe| {
        Box::pin(async move { shown(pipe.send_timeout(item(SENT_BYTES, 5), Duration::ZERO).await) })
    }),
    Use::new("reserve", |pipe| {
        Box::pin(async move {
            let permit = pipe.reserve(SENT_BYTES).await;
            step().await;
            shown(permit.map(drop))
        })
    }),
    Use::new("finish", |pipe| {
        Box::pin(async move {
            pipe.sender().unwrap().finish();
            "finished".into()
        })
    }),
    Use::new("abort", |pipe| {
        Box::pin(async move {
            pipe.sender().unwrap().abort("no more");
            "aborted".into()
        })
    }),
    Use::new("close", |pipe| Box::pin(async move { shown(pipe.close().await) })),
    Use::new("flush", |pipe| Box::pin(async move { shown(pipe.flush().await) })),
    Use::look("undelivered", |pipe| Box::pin(async move { undelivered(&pipe) })),
    Use::look("stats", |pipe| {
        Box::pin(async move {
            let stats = pipe.stats().send.unwrap();
            format!("{} {} {}", stats.delivered_items, stats.in_flight_bytes, stats.queued_bytes)
        })
    }),
    Use::look("failure", |pipe| Box::pin(async move { failure(&pipe) })),
    Use::last("drop", |pipe| {
        Box::pin(async move {
            drop(pipe);
            "dropped".into()
        })
    }),
];

const TURNS: &[Turn<Act>] = &[
    ("next", Some(|items| Box::pin(async { Did::Said(taken(items.next().await)) }))),
    (
        "next cancelled",
        Some(|items| {
            Box::pin(async { Did::Said(format!("{:?}", cancelled(items.next()).await.map(taken))) })
        }),
    ),
    ("try_next", Some(|items| Box::pin(async { Did::Said(taken(Ok(items.try_next()))) }))),
    (
        "settle",
        Some(|items| {
            Box::pin(async {
                items.settle(1);
                Did::Said("settled".into())
            })
        }),
    ),
    (
        "rewind",
        Some(|items| {
            Box::pin(async {
                items.rewind(0);
                Did::Said("rewound".into())
            })
        }),
    ),
    ("failed", Some(|items| Box::pin(async { Did::Said(items.failed().await.to_string()) }))),
    (
        "progress",
        Some(|items| {
            Box::pin(async {
                items.progress();
                Did::Said("moved".into())
            })
        }),
    ),
    ("end well", Some(|_| Box::pin(async { Did::Ended(Ok(())) }))),
    ("end badly", Some(|_| Box::pin(async { Did::Ended(Err(broken())) }))),
    ("driver dropped", None),
];

const LOOKS: &[Turn<Act>] = &[
    ("accepted", Some(|items| Box::pin(async { Did::Said(items.accepted().to_string()) }))),
    ("settled", Some(|items| Box::pin(async { Did::Said(items.settled().to_string()) }))),
    ("is_closed", Some(|items| Box::pin(async { Did::Said(items.is_closed().to_string()) }))),
];

fn user_sees(pipe: &Pipe) -> String {
    let stats = pipe.stats().send.unwrap();
    format!(
        "{} delivered, {} in flight, {} queued, {} held, {} undelivered, {}",
        stats.delivered_items,
        stats.in_flight_bytes,
        stats.queued_bytes,
        stats.held_bytes,
        undelivered(pipe),
        failure(pipe),
    )
}

fn undelivered(pipe: &Pipe) -> String {
    let items = pipe.undelivered();
    let items: Vec<_> = items.iter().map(|one| (one.sequence, mark_of(&one.item), one.in_doubt)).collect();
    format!("{items:?}")
}

fn failure(pipe: &Pipe) -> String {
    format!("{:?}", pipe.sender().unwrap().failure().map(|failure| failure.to_string()))
}

fn transport_sees(items: &Outbox) -> String {
    let (settled, accepted, is_closed) = (items.settled(), items.accepted(), items.is_closed());
    format!("{settled} of {accepted}, closed: {is_closed}, next {:?}", now(items.next()).map(taken))
}

fn taken(next: kvpipe::Result<Option<(u64, Item)>>) -> String {
    shown(next.map(|next| next.map(|(sequence, item)| (sequence, mark_of(&item)))))
}

fn permit(pipe: &Pipe) -> SendPermit {
    now(pipe.reserve(1)).unwrap().unwrap()
}

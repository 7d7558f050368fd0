//! The sending end: what users do, against each other and against what a transport does.

use std::pin::Pin;

use kvpipe::pipe::SendPermit;
use kvpipe::transport::Outbox;
use kvpipe::{Item, Pipe};

use super::{
    Did, Party, Scene, Script, Transport, Use, as_if_in_turns, broken, cancelled, mark_of,
    nobody_is_forgotten, now, shown, step,
};
use crate::support::{budget, consumer, item};

/// One item of [`HELD_BYTES`] or none, and two permits of a byte or none, leave room for
/// [`SENT_BYTES`] only if there is no item.
const BUDGET: usize = 4;
const HELD_BYTES: usize = 2;
const SENT_BYTES: usize = 3;

/// How a scene begins.
#[derive(Clone, Copy, Debug)]
enum Held {
    Nothing,
    Queued,
    InFlight,
}

const BEGINNINGS: [Held; 3] = [Held::Nothing, Held::Queued, Held::InFlight];

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
    Use::new("look", |pipe| Box::pin(async move { undelivered(&pipe) })),
    Use::last("drop", |pipe| {
        Box::pin(async move {
            drop(pipe);
            "dropped".into()
        })
    }),
];

type Act = for<'a> fn(&'a Outbox) -> Pin<Box<dyn Future<Output = Did> + Send + 'a>>;

/// All but the drop of the driver.
const ACTS: &[(&str, Act)] = &[
    ("next", |items| Box::pin(async { Did::Said(taken(items.next().await)) })),
    ("next cancelled", |items| {
        Box::pin(async { Did::Said(format!("{:?}", cancelled(items.next()).await.map(taken))) })
    }),
    ("try_next", |items| Box::pin(async { Did::Said(taken(Ok(items.try_next()))) })),
    ("settle", |items| {
        Box::pin(async {
            items.settle(1);
            Did::Said("settled".into())
        })
    }),
    ("rewind", |items| {
        Box::pin(async {
            items.rewind(0);
            Did::Said("rewound".into())
        })
    }),
    ("failed", |items| Box::pin(async { Did::Said(items.failed().await.to_string()) })),
    ("progress", |items| {
        Box::pin(async {
            items.progress();
            Did::Said("moved".into())
        })
    }),
    ("look", |items| Box::pin(async { Did::Said(format!("{} of them", items.accepted())) })),
    ("end well", |_| Box::pin(async { Did::Ended(Ok(())) })),
    ("end badly", |_| Box::pin(async { Did::Ended(Err(broken())) })),
];

#[test]
fn a_user_and_the_transport_at_the_sending_end() {
    let mut executions = 0;
    for held in BEGINNINGS {
        for user in USES {
            for &(act_name, act) in ACTS {
                executions += as_if_in_turns(&format!("{held:?}: {}, {act_name}", user.name), move || {
                    scene(held, Some(act), user.is_last, |pipe, transport| {
                        vec![(user.act)(pipe), transport.act()]
                    })
                });
            }
            executions += as_if_in_turns(&format!("{held:?}: {}, driver dropped", user.name), move || {
                scene(held, None, user.is_last, |pipe, transport| vec![(user.act)(pipe), transport.dropped()])
            });
        }
    }
    println!("pairs_send_transport: {executions} executions without a bound");
}

#[test]
fn two_users_at_the_sending_end() {
    let mut executions = 0;
    for held in BEGINNINGS {
        for (index, left) in USES.iter().enumerate() {
            for right in &USES[index..] {
                let is_last = left.is_last || right.is_last;
                executions +=
                    as_if_in_turns(&format!("{held:?}: {}, {}", left.name, right.name), move || {
                        scene(held, None, is_last, |pipe, _| {
                            vec![(left.act)(pipe.clone()), (right.act)(pipe)]
                        })
                    });
            }
        }
    }
    println!("pairs_send_users: {executions} executions without a bound");
}

#[test]
fn two_users_and_the_transport_at_the_sending_end() {
    let mut executions = 0;
    for held in BEGINNINGS {
        for (index, left) in USES.iter().enumerate() {
            for right in &USES[index..] {
                let is_last = left.is_last || right.is_last;
                for &(act_name, act) in ACTS {
                    executions += nobody_is_forgotten(
                        &format!("{held:?}: {}, {}, {act_name}", left.name, right.name),
                        move || {
                            scene(held, Some(act), is_last, |pipe, t| {
                                vec![(left.act)(pipe.clone()), (right.act)(pipe), t.act()]
                            })
                        },
                    );
                }
            }
        }
    }
    println!("trios_send: {executions} executions at bound 2");
}

fn scene(
    held: Held,
    act: Option<Act>,
    is_last: bool,
    parties: impl FnOnce(Pipe, &Transport) -> Vec<Party>,
) -> Scene {
    let script = Script::default();
    let acting = script.clone();
    let (pipe, driver) = Pipe::send_only(
        consumer(move |items| {
            Box::pin(async move {
                if matches!(held, Held::InFlight) {
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
    if !matches!(held, Held::Nothing) {
        pipe.try_send(item(HELD_BYTES, 9)).unwrap();
    }
    let transport = Transport::paused(driver, script);
    let kept = (!is_last).then(|| pipe.clone());
    let parties = parties(pipe, &transport);
    let look = move || {
        let user_sees = kept.as_ref().map(user_sees);
        let transport_sees = transport.sees();
        // Is there really room, and nobody in line for it who is not there any more?
        let sent = kept.map(|pipe| shown(pipe.try_send(item(SENT_BYTES, 8))));
        format!("{user_sees:?} | {transport_sees} | {sent:?}")
    };
    Scene { parties, look: Box::new(look) }
}

fn user_sees(pipe: &Pipe) -> String {
    let (stats, sender) = (pipe.stats().send.unwrap(), pipe.sender().unwrap());
    format!(
        "{} delivered, {} in flight, {} queued, {} held, {} undelivered, {:?}",
        stats.delivered_items,
        stats.in_flight_bytes,
        stats.queued_bytes,
        stats.held_bytes,
        undelivered(pipe),
        sender.failure().map(|failure| failure.to_string()),
    )
}

fn undelivered(pipe: &Pipe) -> String {
    let items = pipe.undelivered();
    let items: Vec<_> = items.iter().map(|one| (one.sequence, mark_of(&one.item), one.in_doubt)).collect();
    format!("{items:?}")
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

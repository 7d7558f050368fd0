//! The receiving end: what users do, against each other and against what a transport does.

use std::pin::Pin;

use kvpipe::transport::{Inbox, Permit};
use kvpipe::{Item, Pipe};

use super::{
    Did, Party, Scene, Script, Transport, Use, as_if_in_turns, broken, cancelled, mark_of,
    nobody_is_forgotten, now, shown, step,
};
use crate::support::{budget, item, producer};

/// A permit of a byte, and one item of [`HELD_BYTES`] or none, leave room for [`FILLED_BYTES`] only if
/// there is no item.
const WINDOW: usize = 4;
const HELD_BYTES: usize = 2;
const FILLED_BYTES: usize = 3;

/// How a scene begins.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Nothing,
    Queued,
}

const BEGINNINGS: [Held; 2] = [Held::Nothing, Held::Queued];

const USES: &[Use] = &[
    Use::new("recv", |pipe| Box::pin(async move { received(pipe.recv().await) })),
    Use::new("try_recv", |pipe| Box::pin(async move { received(pipe.try_recv()) })),
    Use::new("recv cancelled", |pipe| {
        Box::pin(async move { format!("{:?}", cancelled(pipe.recv()).await.map(received)) })
    }),
    Use::new("close", |pipe| Box::pin(async move { shown(pipe.close().await) })),
    Use::new("look", |pipe| Box::pin(async move { queued(&pipe) })),
    Use::last("drop", |pipe| {
        Box::pin(async move {
            drop(pipe);
            "dropped".into()
        })
    }),
];

type Act = for<'a> fn(&'a Inbox, Permit) -> Pin<Box<dyn Future<Output = Did> + Send + 'a>>;

/// All but the drop of the driver.
const ACTS: &[(&str, Act)] = &[
    ("reserve, fill", |items, kept| {
        Box::pin(async {
            let filled = match items.reserve(FILLED_BYTES).await {
                Ok(permit) => permit.fill(item(FILLED_BYTES, 1)),
                Err(error) => Err(error),
            };
            drop(kept);
            Did::Said(shown(filled))
        })
    }),
    ("reserve cancelled", |items, _kept| {
        Box::pin(async {
            let reserved = cancelled(items.reserve(FILLED_BYTES)).await;
            Did::Said(format!("{:?}", reserved.map(|permit| shown(permit.map(drop)))))
        })
    }),
    ("fill", |_, permit| Box::pin(async { Did::Said(shown(permit.fill(item(1, 2)))) })),
    ("permit dropped", |_, permit| {
        Box::pin(async {
            drop(permit);
            Did::Said("dropped".into())
        })
    }),
    ("closed", |items, _kept| {
        Box::pin(async {
            items.closed().await;
            Did::Said("closed".into())
        })
    }),
    ("drained", |items, _kept| Box::pin(async { Did::Said(items.drained().await.to_string()) })),
    ("look", |items, _kept| Box::pin(async { Did::Said(format!("{} taken", items.taken())) })),
    ("end well", |_, _kept| Box::pin(async { Did::Ended(Ok(())) })),
    ("end badly", |_, _kept| Box::pin(async { Did::Ended(Err(broken())) })),
];

#[test]
fn a_user_and_the_transport_at_the_receiving_end() {
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
    println!("pairs_receive_transport: {executions} executions without a bound");
}

#[test]
fn two_users_at_the_receiving_end() {
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
    println!("pairs_receive_users: {executions} executions without a bound");
}

#[test]
fn two_users_and_the_transport_at_the_receiving_end() {
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
    println!("trios_receive: {executions} executions at bound 2");
}

fn scene(
    held: Held,
    act: Option<Act>,
    is_last: bool,
    parties: impl FnOnce(Pipe, &Transport) -> Vec<Party>,
) -> Scene {
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
    let transport = Transport::paused(driver, script);
    let kept = (!is_last).then(|| pipe.clone());
    let parties = parties(pipe, &transport);
    let look = move || {
        let user_sees = kept.as_ref().map(queued);
        let transport_sees = transport.sees();
        let left = kept.map(|pipe| [(); 2].map(|()| received(pipe.try_recv())));
        format!("{user_sees:?} | {transport_sees} | {left:?}")
    };
    Scene { parties, look: Box::new(look) }
}

fn queued(pipe: &Pipe) -> String {
    let (stats, receiver) = (pipe.stats().receive.unwrap(), pipe.receiver().unwrap());
    format!("{} taken, {} queued, {:?}", stats.taken_items, stats.queued_bytes, receiver.failure())
}

fn transport_sees(items: &Inbox) -> String {
    let room = now(items.reserve(WINDOW)).map(|permit| shown(permit.map(drop)));
    format!("{} taken, {} to spare, room for all: {room:?}", items.taken(), items.spare_bytes())
}

fn received(item: kvpipe::Result<Item>) -> String {
    shown(item.map(|item| mark_of(&item)))
}

//! Sending and receiving by all methods that a pipe has, and leaving in one of several ways.

use std::rc::Rc;
use std::time::Duration;

use kvpipe::group::StatelessProcessGroup;
use kvpipe::store::tcp::TcpStore;
use kvpipe::wire::object::Object;
use kvpipe::{Error, Item, Result};
use tokio::task::JoinSet;

use super::items::Items;
use super::{Ending, Pace, Traffic, Workload};
use crate::draws::Draws;
use crate::net::SimNet;
use crate::world::{MEET_WITHIN, Rank, ReceivingEnd, SendingEnd};

pub(super) async fn run(workload: &Workload, rank: Rank) -> Result<()> {
    dawdle(rank.draws()).await;
    let store = rank.store().await?;
    let group = rank.group(store.clone())?;
    // One that was killed comes back to ranks that have left the group behind.
    let grouped = workload.group && rank.start() == 0;
    if grouped {
        talk(&rank, &group).await?;
    }
    for attempt in 0..=workload.reopens {
        if use_pipe(workload, &rank, &store, attempt).await? == Outcome::Over {
            break;
        }
        if attempt < workload.reopens {
            rank.begins_anew();
            rank.happened("pipe opened again");
        }
    }
    if grouped && workload.parts_together {
        rank.meets("the last barrier", MEET_WITHIN, group.barrier()).await?;
    }
    Ok(())
}

/// What a group is for, once each; and everybody hears what was said.
async fn talk(rank: &Rank, group: &StatelessProcessGroup<TcpStore<SimNet>>) -> Result<()> {
    let (own, size) = (rank.number(), rank.world_size());
    let word = |rank: usize| Object::Text(format!("rank {rank} of {size}"));
    rank.meets("the first barrier", MEET_WITHIN, group.barrier()).await?;
    let speaker = size - 1;
    let said = (own == speaker).then(|| word(speaker));
    let heard =
        rank.waits_within("a broadcast", MEET_WITHIN, group.broadcast_obj(said.as_ref(), speaker)).await?;
    rank.expect(heard == word(speaker), || format!("the broadcast gave {heard:?}"));
    let all = rank.waits_within("an all_gather", MEET_WITHIN, group.all_gather_obj(&word(own))).await?;
    rank.expect(all == (0..size).map(word).collect::<Vec<_>>(), || format!("all_gather gave {all:?}"));
    rank.waits_within("a send", MEET_WITHIN, group.send_obj(&word(own), (own + 1) % size)).await?;
    let before = (own + size - 1) % size;
    let heard = rank.waits_within("a receive", MEET_WITHIN, group.recv_obj(before)).await?;
    rank.expect(heard == word(before), || format!("rank {before} sent {heard:?}"));
    match own {
        // In whatever order it asks, each is heard as itself.
        0 => {
            for other in (1..size).rev() {
                let heard = rank.waits_within("a receive", MEET_WITHIN, group.recv_obj(other)).await?;
                rank.expect(heard == word(other), || format!("rank {other} sent {heard:?}"));
            }
        }
        _ => rank.waits_within("a send", MEET_WITHIN, group.send_obj(&word(own), 0)).await?,
    }
    rank.meets("the second barrier", MEET_WITHIN, group.barrier()).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The rank has done what it wanted to.
    Over,
    /// The pipe has failed, and a new one may do better.
    Failed,
}

async fn use_pipe(
    workload: &Workload,
    rank: &Rank,
    store: &TcpStore<SimNet>,
    attempt: usize,
) -> Result<Outcome> {
    let name = "kv";
    let sides = match workload.traffic {
        Traffic::Edge => [rank.number() == 0, rank.number() == 1],
        _ => [true, true],
    };
    let (sender, receiver) = workload.settings.open(rank, store, name, sides).await?;
    let plan = Plan::drawn(workload, rank, attempt);
    rank.happened(&format!("leaves: {}", plan.ending));
    let (sender, receiver) = (sender.map(Rc::new), receiver.map(Rc::new));
    let mut tasks = JoinSet::new();
    if let Some(sender) = &sender {
        tasks.spawn_local(send(Rc::clone(sender), plan.clone()));
    }
    if let Some(receiver) = &receiver {
        tasks.spawn_local(receive(Rc::clone(receiver), plan.clone()));
    }
    if plan.ending == Ending::Drop {
        tokio::time::sleep(plan.dropped_after).await;
        rank.note("drops everything");
        tasks.shutdown().await;
        return Ok(Outcome::Over);
    }
    let mut failed = all(tasks).await.is_err();
    if let Some(sender) = sender {
        let closed = sender.close().await;
        failed |= closed.is_err() && plan.ending != Ending::Abort;
    }
    if let Some(receiver) = receiver {
        receiver.close().await;
    }
    Ok(if failed { Outcome::Failed } else { Outcome::Over })
}

/// What a rank does with one pipe.
#[derive(Clone, Debug)]
struct Plan {
    seed_name: String,
    workload: Workload,
    ending: Ending,
    /// After so many items it aborts, or stops receiving.
    turning_point: usize,
    dropped_after: Duration,
    draws: Draws,
    items: Rc<Items>,
}

impl Plan {
    fn drawn(workload: &Workload, rank: &Rank, attempt: usize) -> Self {
        let seed_name = format!("pipe {attempt} of rank {}, start {}", rank.number(), rank.start());
        let draws = rank.draws().fork(&seed_name);
        let ending = workload.endings[draws.bytes(0..=workload.endings.len() - 1)];
        let items =
            Items::new(rank.draws().fork(&seed_name).between(0..=u64::MAX), &seed_name, workload.sizes);
        Self {
            ending,
            turning_point: draws.bytes(0..=workload.items),
            dropped_after: Duration::from_millis(draws.between(1..=1500)),
            items: Rc::new(items),
            workload: workload.clone(),
            seed_name,
            draws,
        }
    }

    fn aborts_after(&self) -> Option<usize> {
        (self.ending == Ending::Abort).then_some(self.turning_point)
    }
}

/// Sends everything, by several tasks.
async fn send(end: Rc<SendingEnd>, plan: Plan) -> Result<()> {
    end.send(plan.items.first()?).await?;
    if plan.aborts_after() == Some(0) {
        end.abort("as planned");
        return Ok(());
    }
    let senders = plan.workload.tasks[0];
    let mut tasks = JoinSet::new();
    for task in 0..senders {
        tasks.spawn_local(send_some(Rc::clone(&end), plan.clone(), task));
    }
    let result = all(tasks).await;
    if plan.aborts_after().is_some() {
        end.abort("as planned");
        return Ok(());
    }
    end.finish();
    result
}

async fn send_some(end: Rc<SendingEnd>, plan: Plan, task: usize) -> Result<()> {
    let draws = plan.draws.fork(&format!("{} sending task {task}", plan.seed_name));
    let Workload { items, tasks: [senders, _], pace, settings, .. } = &plan.workload;
    let count = plan.aborts_after().unwrap_or(*items) / senders;
    for number in 0..count {
        match pace {
            Pace::IdleThenBurst if number == count / 2 => {
                tokio::time::sleep(settings.heartbeat * 3).await;
            }
            Pace::IdleThenBurst => {}
            Pace::Brisk | Pace::SlowReceiver => dawdle(&draws).await,
        }
        send_one(&end, &draws, plan.items.next()?).await?;
        if draws.one_in(12) {
            end.flush().await?;
        }
    }
    Ok(())
}

/// By any method. What one of them could not send, another does, or it is not sent at all.
async fn send_one(end: &SendingEnd, draws: &Draws, item: Item) -> Result<()> {
    let patience = Duration::from_millis(draws.between(1..=100));
    let bytes = item.as_ref().map_or(0, kvpipe::Tensor::byte_len);
    match draws.between(0..=9) {
        0 => match end.try_send(item.clone()) {
            Err(Error::Full) => end.send(item).await.map(drop),
            sent => sent.map(drop),
        },
        1 => match end.send_timeout(item, patience).await {
            Err(Error::Timeout { .. }) if end.failure().is_none() => Ok(()),
            sent => sent.map(drop),
        },
        2 => end.reserve_and_send(bytes + draws.bytes(0..=1000), patience, item).await.map(drop),
        3 => {
            // Cancelled at any point, and what it gives up the next one gets.
            let _ = tokio::time::timeout(patience, end.send(item.clone())).await;
            Ok(())
        }
        4 => {
            end.reserve_in_vain(bytes, patience).await?;
            end.send(item).await.map(drop)
        }
        _ => end.send(item).await.map(drop),
    }
}

/// Takes everything, by several tasks.
async fn receive(end: Rc<ReceivingEnd>, plan: Plan) -> Result<()> {
    let receivers = plan.workload.tasks[1];
    let mut tasks = JoinSet::new();
    for task in 0..receivers {
        tasks.spawn_local(receive_some(Rc::clone(&end), plan.clone(), task));
    }
    let result = all(tasks).await;
    if plan.ending == Ending::StopReceiving {
        end.close().await;
        return Ok(());
    }
    result
}

async fn receive_some(end: Rc<ReceivingEnd>, plan: Plan, task: usize) -> Result<()> {
    let draws = plan.draws.fork(&format!("{} receiving task {task}", plan.seed_name));
    let Workload { tasks: [_, receivers], pace, settings, .. } = &plan.workload;
    let mut taken = 0;
    let most = match plan.ending {
        Ending::StopReceiving => plan.turning_point / receivers,
        _ => usize::MAX,
    };
    while taken < most {
        match receive_one(&end, &draws).await {
            Ok(true) => taken += 1,
            Ok(false) => {}
            Err(Error::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
        match pace {
            Pace::SlowReceiver if draws.one_in(16) => {
                let long = settings.heartbeat.as_millis() as u64 * 2;
                tokio::time::sleep(Duration::from_millis(draws.between(1..=long))).await;
            }
            _ => dawdle(&draws).await,
        }
    }
    Ok(())
}

/// By any method. False if it gave nothing.
async fn receive_one(end: &ReceivingEnd, draws: &Draws) -> Result<bool> {
    let patience = Duration::from_millis(draws.between(1..=100));
    let received = match draws.between(0..=9) {
        0 => end.try_recv(),
        1 => end.recv_timeout(patience).await,
        2 => match tokio::time::timeout(patience, end.recv()).await {
            Ok(received) => received,
            Err(_cancelled) => return Ok(false),
        },
        _ => end.recv().await,
    };
    match received {
        Ok(_) => Ok(true),
        Err(Error::Empty) => {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(false)
        }
        Err(Error::Timeout { .. }) if end.failure().is_none() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits for all of them. A panic there is one here.
pub(super) async fn all(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        result = result.and(ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())));
    }
    result
}

/// Does something else now and then.
pub(super) async fn dawdle(draws: &Draws) {
    if draws.one_in(4) {
        tokio::time::sleep(Duration::from_millis(draws.between(1..=30))).await;
    }
}

//! Ranks in processes of their own that are killed or frozen at random moments, and how long it takes
//! the other to notice.
//!
//! `KVPIPE_DEATH_ROUNDS` sets how many rounds of each kind there are; with `--nocapture` the times
//! are printed, as parts of the limit.

#![cfg(unix)]
#![allow(missing_docs, reason = "a test binary")]

mod process;
mod rank;

use std::time::Duration;

use kvpipe::entropy::Entropy;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::process::Process;
use crate::rank::{Activity, Settings, Side};

/// Heartbeat limit and reconnect timeout.
const LIMIT: Duration = Duration::from_millis(500);

/// What a busy machine may add to it.
const SLACK: Duration = Duration::from_secs(15);

/// Rounds at the same time, of all kinds together: more would measure the scheduler.
static AT_ONCE: Semaphore = Semaphore::const_new(3);

/// What befalls one of two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Killed,
    Frozen,
}

/// A round: whom it befalls, and during what.
#[derive(Clone, Copy, Debug)]
struct Round {
    victim: Side,
    fate: Fate,
    activity: Activity,
    moment: Duration,
    seed: u64,
}

/// What the survivor said, and when.
struct Report {
    text: String,
    took: Duration,
}

impl Round {
    fn draw(victim: Side, fate: Fate, random: &Entropy) -> Self {
        let draw = || random.next_u64().unwrap();
        let activity = Activity::UNENDING[draw() as usize % Activity::UNENDING.len()];
        Self { victim, fate, activity, moment: Duration::from_micros(draw() % 150_000), seed: draw() }
    }

    async fn run(self) -> Report {
        let settings = Settings { activity: self.activity, seed: self.seed, limit: LIMIT };
        let (sender, receiver) = Process::two_ranks(settings).await;
        let (mut victim, mut survivor) = match self.victim {
            Side::Sender => (sender, receiver),
            Side::Receiver => (receiver, sender),
        };
        tokio::time::sleep(self.moment).await;
        let begin = Instant::now();
        match self.fate {
            Fate::Killed => victim.kill(),
            Fate::Frozen => victim.signal("STOP").await,
        }
        // A receiver whose inbox is full learns of nothing before its user takes something.
        survivor.go_on().await;
        let text = survivor.after("ended: ").await;
        let took = begin.elapsed();
        drop(survivor);
        if self.fate == Fate::Frozen {
            // It was not asked whether it wanted to be dead.
            victim.signal("CONT").await;
            victim.go_on().await;
            let text = victim.after("ended: ").await;
            assert!(text.contains("the peer is gone"), "{self:?}: the frozen one says {text}");
        }
        Report { text, took }
    }
}

/// Rounds of a kind; `says` is what each survivor's error must contain.
async fn rounds(victim: Side, fate: Fate, says: &str) {
    let count: usize = std::env::var("KVPIPE_DEATH_ROUNDS").map_or(20, |text| text.parse().unwrap());
    let random = Entropy::seeded(victim as u64 * 2 + fate as u64);
    let mut running = JoinSet::new();
    for _ in 0..count {
        let round = Round::draw(victim, fate, &random);
        running.spawn(async move {
            let _turn = AT_ONCE.acquire().await.unwrap();
            (round, round.run().await)
        });
    }
    let mut times: [Vec<f64>; 3] = Default::default();
    while let Some(ended) = running.join_next().await {
        let (round, Report { text, took }) = ended.unwrap();
        assert!(text.contains(says), "{round:?}: {text}");
        assert!(took < LIMIT + SLACK, "{round:?}: {took:?}");
        times[round.activity as usize].push(took.as_secs_f64() / LIMIT.as_secs_f64());
    }
    for (activity, times) in Activity::UNENDING.iter().zip(&mut times) {
        println!("{victim:?} {fate:?} while {activity:?}: {}", distribution(times));
    }
    println!("{victim:?} {fate:?}: {}", distribution(&mut times.concat()));
}

/// In words; times are parts of the limit.
fn distribution(times: &mut [f64]) -> String {
    times.sort_by(f64::total_cmp);
    let Some(last) = times.len().checked_sub(1) else { return "no rounds".into() };
    let at = |part: f64| times[(part * last as f64).round() as usize];
    let within = times.iter().filter(|time| **time <= 1.0).count();
    let [min, p50, p99, max] = [0.0, 0.5, 0.99, 1.0].map(at);
    format!(
        "{} rounds in limits of {LIMIT:?}: min {min:.3}, p50 {p50:.3}, p99 {p99:.3}, max {max:.3}; {within} within 1",
        times.len(),
    )
}

#[tokio::test]
async fn a_killed_receiver_is_noticed_at_once() {
    // Because its host refuses, and not because a time was up.
    rounds(Side::Receiver, Fate::Killed, "reconnecting: Connection refused").await;
}

#[tokio::test]
async fn a_killed_sender_is_noticed_after_the_reconnect_timeout() {
    rounds(Side::Sender, Fate::Killed, "did not come back within 0.5 s").await;
}

#[tokio::test]
async fn a_frozen_receiver_is_noticed_within_the_heartbeat_limit() {
    rounds(Side::Receiver, Fate::Frozen, "silent for 0.5 s").await;
}

#[tokio::test]
async fn a_frozen_sender_is_noticed_within_the_heartbeat_limit() {
    rounds(Side::Sender, Fate::Frozen, "silent for 0.5 s").await;
}

#[tokio::test]
async fn a_process_that_is_frozen_and_goes_on_in_time_loses_nothing() {
    let patient = Settings { activity: Activity::Finite, seed: 5, limit: Duration::from_secs(60) };
    let (mut sender, mut receiver) = Process::two_ranks(patient).await;
    let random = Entropy::seeded(11);
    for round in 0..10 {
        let frozen = if round % 2 == 0 { &sender } else { &receiver };
        frozen.signal("STOP").await;
        tokio::time::sleep(Duration::from_millis(random.next_u64().unwrap() % 100)).await;
        frozen.signal("CONT").await;
        tokio::time::sleep(Duration::from_millis(random.next_u64().unwrap() % 30)).await;
    }
    sender.go_on().await;
    assert_eq!(sender.after("ended: ").await, "all delivered");
    assert_eq!(receiver.after("ended: ").await, "the pipe is closed");
}

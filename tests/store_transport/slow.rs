//! A store that swallows, is slow, or whose peers end at any point.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kvpipe::store::{MemoryStore, Store};
use kvpipe::transport::store::StoreConfig;
use kvpipe::{Error, PipeConfig, Result};
use tokio::time::{sleep, timeout};

use crate::support::{HANG, config, drain, numbered, receiving, sending};

/// Answers after a delay, before and after which nothing has and everything has happened.
#[derive(Clone, Default)]
struct Slow {
    inner: MemoryStore,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// One operation in so many fails, before or after it has taken effect; 0 for none.
    fails_one_in: AtomicU64,
    /// No answer comes any more.
    swallows: AtomicBool,
    /// Values longer than this take longer than anybody waits; 0 for none.
    too_long: AtomicU64,
    latency_ms: AtomicU64,
    random: AtomicU64,
    sets: AtomicU64,
    keys: Mutex<BTreeSet<String>>,
}

impl Slow {
    fn pause(&self) -> Duration {
        let max = self.state.latency_ms.load(Relaxed);
        if max == 0 {
            return Duration::ZERO;
        }
        Duration::from_millis((self.draw() >> 8) % max)
    }

    fn draw(&self) -> u64 {
        let mut x = self.state.random.load(Relaxed) | 1;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.state.random.store(x, Relaxed);
        x
    }

    async fn run<T>(&self, limit: Duration, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let one_in = self.state.fails_one_in.load(Relaxed);
        let draw = self.draw();
        let (before, after) = match one_in != 0 && (draw >> 20).is_multiple_of(one_in) {
            false => (false, false),
            true => (draw & 1024 == 0, draw & 1024 != 0),
        };
        let broken = || Err(Error::io("a test", std::io::ErrorKind::ConnectionReset.into()));
        let running = async {
            sleep(self.pause()).await;
            if before {
                return broken();
            }
            if self.state.swallows.load(Relaxed) {
                std::future::pending::<()>().await;
            }
            let output = operation.await;
            sleep(self.pause()).await;
            if self.state.swallows.load(Relaxed) {
                std::future::pending::<()>().await;
            }
            if after { broken() } else { output }
        };
        match timeout(limit.min(HANG * 100), running).await {
            Ok(output) => output,
            Err(_) => Err(Error::timeout("the store to answer", limit)),
        }
    }
}

impl Store for Slow {
    async fn set(&self, key: &str, value: Bytes, limit: Duration) -> Result<()> {
        self.state.sets.fetch_add(1, Relaxed);
        let too_long = self.state.too_long.load(Relaxed);
        if too_long != 0 && value.len() as u64 > too_long {
            sleep(limit).await;
            return Err(Error::timeout("the store to take a value", limit));
        }
        let setting = async {
            self.inner.set(key, value, limit).await?;
            self.state.keys.lock().unwrap().insert(key.into());
            Ok(())
        };
        self.run(limit, setting).await
    }

    async fn get(&self, key: &str, limit: Duration) -> Result<Bytes> {
        self.run(limit, self.inner.get(key, limit)).await
    }

    async fn check(&self, keys: &[&str], limit: Duration) -> Result<bool> {
        self.run(limit, self.inner.check(keys, limit)).await
    }

    async fn delete(&self, key: &str, limit: Duration) -> Result<bool> {
        let deleting = async {
            let deleted = self.inner.delete(key, limit).await?;
            self.state.keys.lock().unwrap().remove(key);
            Ok(deleted)
        };
        self.run(limit, deleting).await
    }

    async fn compare_set(
        &self,
        key: &str,
        expected: Bytes,
        desired: Bytes,
        limit: Duration,
    ) -> Result<Bytes> {
        let comparing = async {
            let stored = self.inner.compare_set(key, expected, desired.clone(), limit).await?;
            if stored == desired {
                self.state.keys.lock().unwrap().insert(key.into());
            }
            Ok(stored)
        };
        self.run(limit, comparing).await
    }

    delegate!(inner: add wait append multi_get multi_set num_keys list_keys queue_push queue_pop try_queue_pop
        queue_len barrier);
}

fn keys(store: &Slow) -> Vec<String> {
    store.state.keys.lock().unwrap().iter().cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_requests_and_never_answers_ends_both_ends() {
    let store = Slow::default();
    let (sender, _a) = sending(&store, config(), PipeConfig::default());
    let (receiver, _b) = receiving(&store, config(), PipeConfig::default());
    sender.send(numbered(0, 8)).await.unwrap();
    receiver.recv().await.unwrap();
    store.state.swallows.store(true, Relaxed);
    sender.send(numbered(1, 8)).await.unwrap();
    let ended = timeout(Duration::from_secs(3600), receiver.recv()).await;
    assert!(ended.is_ok(), "the receiver waits for ever");
    let ended = timeout(Duration::from_secs(3600), sender.flush()).await;
    assert!(ended.is_ok(), "the sender waits for ever");
}

#[tokio::test(start_paused = true)]
async fn a_link_too_slow_for_a_chunk_fails_the_edge() {
    let store = Slow::default();
    let (sender, _a) = sending(&store, config(), PipeConfig::default());
    let (receiver, _b) = receiving(&store, config(), PipeConfig::default());
    store.state.too_long.store(4096, Relaxed);
    sender.send(numbered(0, 100_000)).await.unwrap();
    let ended = timeout(Duration::from_secs(3600), sender.flush()).await;
    let sets = store.state.sets.load(Relaxed);
    assert!(ended.is_ok(), "after an hour the sender still tries the same chunk; {sets} sets");
    drop(receiver);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Close,
    ReceiverCloses,
    ReceiverDrops,
    SenderAborts,
    SenderDrops,
    SenderKilled,
    ReceiverKilled,
}

const ENDINGS: [Ending; 7] = [
    Ending::Close,
    Ending::ReceiverCloses,
    Ending::ReceiverDrops,
    Ending::SenderAborts,
    Ending::SenderDrops,
    Ending::SenderKilled,
    Ending::ReceiverKilled,
];

#[tokio::test(start_paused = true)]
async fn however_an_edge_ends_nothing_is_lost_and_nothing_stays() {
    let mut problems = Vec::new();
    for seed in 0..140_u64 {
        let ending = ENDINGS[seed as usize % ENDINGS.len()];
        if let Err(problem) = run(seed, ending, 0).await {
            problems.push(format!("seed {seed} {ending:?}: {problem}"));
        }
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn however_an_edge_ends_over_a_store_that_fails_nothing_is_lost_and_nothing_stays() {
    let mut problems = Vec::new();
    for seed in 0..700_u64 {
        // The last one ends by its close's timeout here, long before the heartbeat's.
        let ending = ENDINGS[seed as usize % (ENDINGS.len() - 1)];
        if let Err(problem) = run(seed, ending, 3 + seed % 40).await {
            problems.push(format!("seed {seed} {ending:?}: {problem}"));
        }
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

async fn run(seed: u64, ending: Ending, fails: u64) -> std::result::Result<(), String> {
    let store = Slow::default();
    store.state.random.store(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), Relaxed);
    store.state.latency_ms.store([0, 2, 20, 100][(seed / 7) as usize % 4], Relaxed);
    store.state.fails_one_in.store(fails, Relaxed);
    let long = Duration::from_secs(if fails > 0 { 600 } else { 5 });
    let config = || StoreConfig {
        chunk_bytes: 8 << 10,
        window_bytes: 64 << 10,
        heartbeat: long,
        reconnect_timeout: if fails > 0 { long / 2 } else { Duration::from_secs(3) },
        ..StoreConfig::default()
    };
    let (sender, sd) = sending(&store, config(), PipeConfig::default());
    let narrow = [1 << 10, 64 << 10, 1 << 20][seed as usize % 3];
    let (receiver, rd) = receiving(&store, config(), PipeConfig::default().with_buffer_bytes(narrow));
    let at = (seed * 7) % 30;
    let sent: Vec<_> = (0..30)
        .map(|n| if n % 5 == 4 { None } else { numbered(n, [0, 10, 3_000, 20_000][n as usize % 4]) })
        .collect();
    for item in &sent {
        sender.send(item.clone()).await.map_err(|e| e.to_string())?;
    }
    let (ra, sa) = (rd.abort_handle(), sd.abort_handle());
    let mut received = Vec::new();
    if ending != Ending::Close {
        for _ in 0..at {
            received.push(
                timeout(HANG, receiver.recv()).await.map_err(|_| "recv hangs")?.map_err(|e| e.to_string())?,
            );
        }
    }
    let mut sender = Some(sender);
    let mut receiver = Some(receiver);
    match ending {
        Ending::Close => {}
        Ending::ReceiverCloses => timeout(HANG, receiver.as_ref().unwrap().close())
            .await
            .map_err(|_| "close hangs")?
            .map_err(|e| e.to_string())?,
        Ending::ReceiverDrops => receiver = None,
        Ending::SenderAborts => sender.as_ref().unwrap().sender().unwrap().abort("enough"),
        Ending::SenderDrops => sender = None,
        Ending::SenderKilled => sa.abort(),
        Ending::ReceiverKilled => ra.abort(),
    }
    let closing = async {
        match &sender {
            Some(sender) => Some(sender.close().await),
            None => None,
        }
    };
    let draining = async {
        match &receiver {
            Some(receiver) => Some(drain(receiver).await),
            None => None,
        }
    };
    let (closed, drained) =
        timeout(HANG, async { tokio::join!(closing, draining) }).await.map_err(|_| "hangs")?;
    let mut end = None;
    if let Some((rest, error)) = drained {
        received.extend(rest);
        end = Some(error);
    }
    if received[..] != sent[..received.len()] {
        return Err("not a prefix".into());
    }
    if let Some(sender) = &sender {
        let undelivered = sender.undelivered();
        let first = undelivered.first().map_or(30, |u| u.sequence as usize);
        if received.len() < first
            && receiver.is_some()
            && ending != Ending::ReceiverCloses
            && ending != Ending::ReceiverKilled
        {
            return Err(format!("{} received, but all below {first} were acknowledged", received.len()));
        }
        if ending == Ending::Close && closed.as_ref().is_some_and(|c| c.is_err()) {
            return Err(format!("close: {closed:?}"));
        }
    }
    match ending {
        Ending::SenderAborts | Ending::SenderDrops if !matches!(end, Some(Error::PeerAborted { .. })) => {
            return Err(format!("ends with {end:?}"));
        }
        _ => {}
    }
    let (a, b) = timeout(HANG, async { tokio::join!(sd, rd) }).await.map_err(|_| "a driver never ends")?;
    let _ = (a, b);
    let mut left = keys(&store);
    // A Hello that could not be withdrawn in a second harms nobody.
    left.retain(|key| !key.ends_with("0-1/receiver"));
    if !left.is_empty() {
        let short: Vec<_> = left
            .iter()
            .map(|k| k.rsplit_once("/edge/").map_or(k.as_str(), |p| p.1).get(36..).unwrap_or(k))
            .collect();
        return Err(format!("left: {short:?}"));
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_abort_reaches_a_receiver_whose_user_is_slow() {
    let store = Slow::default();
    let (sender, _a) = sending(&store, config(), PipeConfig::default());
    let (receiver, _b) = receiving(&store, config(), PipeConfig::default().with_buffer_bytes(8 << 10));
    for number in 0..60 {
        sender.send(numbered(number, 8 << 10)).await.unwrap();
    }
    sleep(Duration::from_secs(60)).await;
    sender.sender().unwrap().abort("enough");
    sleep(Duration::from_secs(60)).await;
    let (_, end) = drain(&receiver).await;
    assert!(matches!(end, Error::PeerAborted { .. }), "{end}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_begins_anew_ends_the_edge() {
    let store = Slow::default();
    let (sender, _a) = sending(&store, config(), PipeConfig::default());
    let (receiver, _b) = receiving(&store, config(), PipeConfig::default().with_buffer_bytes(8 << 10));
    for number in 0..10 {
        sender.send(numbered(number, 8 << 10)).await.unwrap();
    }
    receiver.recv().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    for key in store.inner.list_keys(HANG).await.unwrap() {
        store.inner.delete(&key, HANG).await.unwrap();
    }
    let all = async {
        for _ in 1..10 {
            receiver.recv().await?;
        }
        Ok::<(), Error>(())
    };
    assert!(timeout(HANG, all).await.is_ok(), "messages are lost, and the receiver waits for ever");
}

#[tokio::test(start_paused = true)]
async fn ends_that_do_not_fit_leave_nothing() {
    let store = Slow::default();
    let (sender, sd) = sending(&store, config(), PipeConfig::default());
    let other = PipeConfig { max_item_bytes: 12_345, ..PipeConfig::default() };
    let (receiver, rd) = receiving(&store, config(), other);
    let error = sender.close().await.unwrap_err();
    assert!(matches!(error, Error::PeerIncompatible { .. }), "{error}");
    receiver.recv().await.unwrap_err();
    let _ = tokio::join!(sd, rd);
    assert_eq!(keys(&store), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_claimed_the_dead_leaves_nothing_of_its_own() {
    let store = Slow::default();
    let (_receiver, driver) = receiving(&store, config(), PipeConfig::default());
    sleep(Duration::from_secs(1)).await;
    driver.abort();
    let short = StoreConfig { connect_timeout: Duration::from_secs(7), ..config() };
    let (sender, sd) = sending(&store, short, PipeConfig::default());
    sender.close().await.unwrap_err();
    sd.await.unwrap();
    let left = keys(&store);
    assert!(left.iter().all(|key| key.ends_with("/receiver")), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rank_alone_sends_to_itself() {
    use kvpipe::transport::Ring;
    use kvpipe::transport::Transport;
    use kvpipe::transport::store::StoreTransport;
    let store = Slow::default();
    store.state.latency_ms.store(20, Relaxed);
    let transport = StoreTransport::new(store.clone(), Ring::new(0, 1).unwrap(), config());
    let (outgoing, incoming) = transport.split();
    let (pipe, driver) = kvpipe::Pipe::new(outgoing, incoming, PipeConfig::default());
    let driver = tokio::spawn(driver);
    for number in 0..30 {
        pipe.send(numbered(number, 9_000)).await.unwrap();
        assert_eq!(timeout(HANG, pipe.recv()).await.expect("hangs").unwrap(), numbered(number, 9_000));
    }
    timeout(HANG, pipe.close()).await.expect("close hangs").unwrap();
    timeout(HANG, driver).await.expect("the driver hangs").unwrap();
    assert_eq!(keys(&store), [""; 0]);
}

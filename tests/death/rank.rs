//! What a rank does until it is killed, or notices that the other was.

use std::time::Duration;

use kvpipe::entropy::Entropy;
use kvpipe::net::TokioNet;
use kvpipe::store::{MemoryStore, Store};
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Error, Item, Pipe, PipeConfig, Tensor};

/// Which end of the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Sender,
    Receiver,
}

/// What the two are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Items of all sizes, as fast as it goes.
    Streaming,
    /// A few items, and then nothing.
    Idle,
    /// The receiver takes a few items, and leaves the others lying until it is told to go on.
    Full,
    /// Streaming until they are told to come to an end.
    Finite,
}

impl Activity {
    pub(crate) const UNENDING: [Self; 3] = [Self::Streaming, Self::Idle, Self::Full];
    const ALL: [Self; 4] = [Self::Streaming, Self::Idle, Self::Full, Self::Finite];
}

/// What both ranks are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) activity: Activity,
    /// Of the items.
    pub(crate) seed: u64,
    /// Heartbeat limit and reconnect timeout.
    pub(crate) limit: Duration,
}

/// The name of the test that is none.
pub(crate) const TEST: &str = "rank::a_rank_if_told_to_be_one";

const SIDE: &str = "KVPIPE_DEATH_SIDE";
const PEER: &str = "KVPIPE_DEATH_PEER";
const ACTIVITY: &str = "KVPIPE_DEATH_ACTIVITY";
const SEED: &str = "KVPIPE_DEATH_SEED";
const LIMIT_MS: &str = "KVPIPE_DEATH_LIMIT_MS";

impl Settings {
    /// As environment variables of a process.
    pub(crate) fn environment(self, side: Side, peer: &str) -> [(&'static str, String); 5] {
        [
            (SIDE, (side as usize).to_string()),
            (PEER, peer.to_owned()),
            (ACTIVITY, (self.activity as usize).to_string()),
            (SEED, self.seed.to_string()),
            (LIMIT_MS, self.limit.as_millis().to_string()),
        ]
    }

    fn from_environment() -> Self {
        let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
        Self {
            activity: Activity::ALL[number(ACTIVITY) as usize],
            seed: number(SEED),
            limit: Duration::from_millis(number(LIMIT_MS)),
        }
    }

    fn config(self) -> TcpConfig {
        TcpConfig {
            connect_timeout: Duration::from_secs(60),
            heartbeat: self.limit,
            reconnect_timeout: self.limit,
            ..TcpConfig::default()
        }
    }
}

/// The process that is killed is one of this.
#[tokio::test]
async fn a_rank_if_told_to_be_one() {
    let Ok(side) = std::env::var(SIDE) else { return };
    let settings = Settings::from_environment();
    let ended = match side == (Side::Sender as usize).to_string() {
        true => send(settings).await,
        false => receive(settings).await,
    };
    say(&format!("ended: {ended}"));
    // At once: our input is being read by a thread that nothing else can stop.
    std::process::exit(0);
}

/// A line of its own, whatever the harness prints.
fn say(text: &str) {
    println!("\nrank: {text}");
}

/// Ready when we are told to go on. The end of the input is the end of who started us, and ours.
async fn told_to_go_on() {
    let reading = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    if reading.await.unwrap().unwrap() == 0 {
        std::process::exit(1);
    }
}

const FEW: usize = 5;

async fn send(settings: Settings) -> String {
    let store = MemoryStore::new();
    let peer = std::env::var(PEER).unwrap();
    store.set("kvpipe//1/address", peer.into(), Duration::from_secs(1)).await.unwrap();
    let ring = Ring::new(0, 2).unwrap();
    let outgoing = TcpOutgoing::new(TokioNet, store, ring, settings.config());
    let (pipe, driver) = Pipe::send_only(outgoing, limits());
    driver.spawn().unwrap();
    match send_items(&pipe, settings).await {
        Ok(()) => "all delivered".into(),
        Err(error) => error.to_string(),
    }
}

async fn send_items(pipe: &Pipe, settings: Settings) -> Result<(), Error> {
    let mut items = items(settings.seed);
    for item in items.by_ref().take(FEW) {
        pipe.send(item).await?;
    }
    pipe.flush().await?;
    say("met");
    let mut going_on = std::pin::pin!(told_to_go_on());
    loop {
        tokio::select! {
            biased;
            () = &mut going_on, if settings.activity == Activity::Finite => return pipe.close().await,
            error = failure(pipe), if settings.activity == Activity::Idle => return Err(error),
            sent = pipe.send(items.next().flatten()), if settings.activity != Activity::Idle => sent?,
        };
    }
}

/// Somebody who sends nothing has to ask.
async fn failure(pipe: &Pipe) -> Error {
    let mut often = tokio::time::interval(Duration::from_millis(1));
    loop {
        often.tick().await;
        if let Some(error) = pipe.sender().unwrap().failure() {
            return error;
        }
    }
}

async fn receive(settings: Settings) -> String {
    let store = MemoryStore::new();
    let address = "127.0.0.1:0".parse().unwrap();
    let ring = Ring::new(1, 2).unwrap();
    let incoming = TcpIncoming::bind(TokioNet, &store, ring, address, settings.config()).await.unwrap();
    say(&format!("address: {}", incoming.local_addr()));
    let (pipe, driver) = Pipe::receive_only(incoming, limits());
    driver.spawn().unwrap();
    receive_items(&pipe, settings).await.to_string()
}

async fn receive_items(pipe: &Pipe, settings: Settings) -> Error {
    for (number, expected) in items(settings.seed).enumerate() {
        match pipe.recv().await {
            Ok(item) => assert!(item == expected, "item {number} is another"),
            Err(error) => return error,
        }
        if number + 1 == FEW {
            say("met");
            if settings.activity == Activity::Full {
                told_to_go_on().await;
            }
        }
    }
    unreachable!("there is no last item");
}

/// So little that a receiver who takes nothing is soon full.
fn limits() -> PipeConfig {
    PipeConfig { max_item_bytes: 4 << 20, ..PipeConfig::default() }.with_buffer_bytes(4 << 20)
}

/// Items without end; equal for equal seeds.
fn items(seed: u64) -> impl Iterator<Item = Item> {
    let random = Entropy::seeded(seed);
    let draw = move |below: u64| random.next_u64().unwrap() % below;
    std::iter::from_fn(move || {
        let bytes = match draw(10) {
            0 => return Some(None),
            1..7 => draw(1 << 10),
            7..9 => draw(100 << 10),
            _ => draw(2 << 20),
        };
        let content = vec![draw(256) as u8; bytes as usize];
        Some(Some(Tensor::from_vec([content.len()], content).unwrap()))
    })
}

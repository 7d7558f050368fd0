//! Two ranks and a store, and what goes wrong between them.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvpipe::entropy::Entropy;
use kvpipe::store::Limits;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use kvpipe::tensor::BufferPool;
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::{Secret, TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Error, Item, Pipe, PipeConfig, Result, pipe};
use tokio::sync::Barrier;

use crate::draws::Draws;
use crate::items::items;
use crate::net::{Conditions, Network, SimNet};
use crate::oracle::{Oracle, SenderEnd, Verdict};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Nothing.
    Calm,
    /// The ranks' connection is cut once, anywhere.
    OneCut,
    /// Twice, the second time often while it is being resumed.
    TwoCuts,
    /// Once, after the sender has begun to close.
    CutWhileClosing,
    /// Once, and the ranks are told not to resume.
    CutWithoutResume,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Calm, Self::OneCut, Self::TwoCuts, Self::CutWhileClosing, Self::CutWithoutResume];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::OneCut => "one-cut",
            Self::TwoCuts => "two-cuts",
            Self::CutWhileClosing => "cut-while-closing",
            Self::CutWithoutResume => "cut-without-resume",
        }
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What is wrong, or what the stream came to.
    pub judgement: std::result::Result<Verdict, Vec<String>>,
    /// Every event, by line.
    pub trace: Vec<String>,
    /// How many cuts struck a connection.
    pub cuts_struck: usize,
    /// How many connections there were between the two ranks.
    pub connections: u64,
    /// How long it took, in simulated time.
    pub simulated: Duration,
}

/// Simulated time after which a run has failed: more than any wait of kvpipe's with these settings.
const LIMIT: Duration = Duration::from_secs(300);

/// How long ranks look for the store and for each other.
const MEET_WITHIN: Duration = Duration::from_secs(60);

const STORE_PORT: u16 = 29_500;

/// Bytes that a handshake and the signs of life need, about.
const HANDSHAKE_BYTES: usize = 400;

/// Runs a scenario; the same seed gives the same outcome.
#[must_use]
pub fn run(scenario: Scenario, seed: u64) -> Outcome {
    let draws = Draws::new(seed, "plan");
    let network = Network::new(seed, Conditions::drawn(&draws));
    let oracle = Arc::new(Mutex::new(Oracle::default()));
    let failed = simulate(scenario, seed, &draws, &network, &oracle);
    let (simulated, connections) = match &failed {
        Ok(ended) => *ended,
        Err(_) => (LIMIT, 0),
    };
    let judgement = match (failed, std::mem::take(&mut *lock(&oracle)).judge()) {
        (Ok(_), Ok(Verdict { failure: Some(error), .. })) if scenario != Scenario::CutWithoutResume => {
            Err(vec![format!("the sender failed without need: {error}")])
        }
        (Ok(_), Ok(verdict)) => Ok(verdict),
        (failed, judged) => {
            let broken = judged.err().into_iter().flatten().map(|violation| violation.to_string());
            Err(failed.err().map(|error| error.to_string()).into_iter().chain(broken).collect())
        }
    };
    let cuts_struck = network.cuts_struck();
    Outcome { judgement, trace: network.trace().lines(), cuts_struck, connections, simulated }
}

fn simulate(
    scenario: Scenario,
    seed: u64,
    draws: &Draws,
    network: &Network,
    oracle: &Arc<Mutex<Oracle>>,
) -> turmoil::Result<(Duration, u64)> {
    let mut sim = network.simulation(LIMIT);
    let [store, sending, receiving] = ["store", "rank0", "rank1"].map(|name| sim.lookup(name));
    let net = SimNet::new(network, "store", store);
    sim.host("store", move || {
        let net = net.clone();
        async move {
            let address = SocketAddr::new(store, STORE_PORT);
            let _server = TcpStoreServer::bind(&net, address, Limits::default()).await?;
            std::future::pending().await
        }
    });
    let items = items(draws, draws.bytes(10..=50))?;
    let settings = Settings::drawn(scenario, draws)?;
    let plan = Plan { scenario, hosts: [sending, receiving], draws: Draws::new(seed, "cuts") };
    plan.before_the_meeting(network, &items);
    let both_ended = Arc::new(Barrier::new(2));
    let [sender, receiver] = ["rank0", "rank1"].map(|name| Rank {
        name,
        network: network.clone(),
        net: SimNet::new(network, name, sim.lookup(name)),
        settings: settings.clone(),
        entropy: Entropy::seeded(seed ^ u64::from(name.ends_with('1'))),
        draws: Draws::new(seed, name),
        oracle: Arc::clone(oracle),
        both_ended: Arc::clone(&both_ended),
    });
    sim.client("rank0", async move { Ok(sender.send(items, plan).await?) });
    sim.client("rank1", async move { Ok(receiver.receive().await?) });
    sim.run()?;
    Ok((sim.elapsed(), network.connections_made(sending, receiving)))
}

/// When to cut.
struct Plan {
    scenario: Scenario,
    hosts: [IpAddr; 2],
    draws: Draws,
}

impl Plan {
    fn before_the_meeting(&self, network: &Network, items: &[Item]) {
        match self.scenario {
            Scenario::Calm | Scenario::CutWhileClosing => {}
            Scenario::OneCut | Scenario::CutWithoutResume => self.anywhere(network, items),
            Scenario::TwoCuts => {
                self.anywhere(network, items);
                match self.draws.one_in(2) {
                    true => self.soon(network),
                    false => self.anywhere(network, items),
                }
            }
        }
    }

    fn before_the_close(&self, network: &Network) {
        if self.scenario == Scenario::CutWhileClosing {
            self.soon(network);
        }
    }

    fn anywhere(&self, network: &Network, items: &[Item]) {
        let payload: usize = items.iter().flatten().map(kvpipe::Tensor::byte_len).sum();
        let bytes = [HANDSHAKE_BYTES + payload + 40 * items.len(), HANDSHAKE_BYTES + 20 * items.len()];
        self.cut_within(network, bytes);
    }

    /// In the next few frames, or while a connection is being resumed.
    fn soon(&self, network: &Network) {
        self.cut_within(network, [HANDSHAKE_BYTES; 2]);
    }

    /// Within so many bytes to the receiver, or from it.
    fn cut_within(&self, network: &Network, [to_receiver, to_sender]: [usize; 2]) {
        let [sending, receiving] = self.hosts;
        match self.draws.one_in(3) {
            true => network.cut_after(receiving, sending, self.draws.bytes(1..=to_sender)),
            false => network.cut_after(sending, receiving, self.draws.bytes(1..=to_receiver)),
        }
    }
}

/// How both ranks are set up.
#[derive(Clone)]
struct Settings {
    pipe: PipeConfig,
    tcp: TcpConfig,
}

impl Settings {
    fn drawn(scenario: Scenario, draws: &Draws) -> Result<Self> {
        let pipe = PipeConfig {
            budget_bytes: 1 << draws.between(12..=22),
            window_bytes: 1 << draws.between(12..=22),
            max_item_bytes: 1 << 20,
            ..PipeConfig::default()
        };
        let mut tcp =
            TcpConfig { checksum: !draws.one_in(4), connect_timeout: MEET_WITHIN, ..TcpConfig::default() };
        tcp.pool = BufferPool::new(4 << 20);
        if draws.one_in(3) {
            tcp.secret = Some(Secret::new("a secret of both ranks")?);
        }
        if scenario == Scenario::CutWithoutResume {
            tcp.reconnect_timeout = Duration::ZERO;
        }
        Ok(Self { pipe, tcp })
    }
}

/// One of the two ranks.
struct Rank {
    name: &'static str,
    network: Network,
    net: SimNet,
    settings: Settings,
    entropy: Entropy,
    draws: Draws,
    oracle: Arc<Mutex<Oracle>>,
    /// A host whose rank has ended refuses connections, and is not off the network.
    both_ended: Arc<Barrier>,
}

impl Rank {
    async fn send(self, items: Vec<Item>, plan: Plan) -> Result<()> {
        let store = self.join().await?;
        let outgoing = TcpOutgoing::new(self.net.clone(), store, Ring::new(0, 2)?, self.tcp_config());
        let (pipe, driver) = Pipe::send_only(outgoing, self.settings.pipe.clone());
        let user = async {
            for item in items {
                self.dawdle().await;
                match pipe.send(item.clone()).await {
                    Ok(sequence) => self.accepted(sequence, &item),
                    // How it ended, the close says.
                    Err(_) => break,
                }
            }
            plan.before_the_close(&self.network);
            self.note("closes");
            let end = SenderEnd {
                closed: pipe.close().await,
                undelivered: pipe.undelivered(),
                acknowledged: pipe.stats().send.map_or(0, |send| send.delivered_items),
            };
            self.sender_ended(end);
        };
        tokio::join!(driver, user);
        self.ended().await;
        Ok(())
    }

    async fn receive(self) -> Result<()> {
        let store = self.join().await?;
        let address = SocketAddr::new(store.local_addr().ip(), 0);
        let ring = Ring::new(1, 2)?;
        let incoming = TcpIncoming::bind(self.net.clone(), &store, ring, address, self.tcp_config()).await?;
        let (pipe, driver) = Pipe::receive_only(incoming, self.settings.pipe.clone());
        let user = async {
            loop {
                match pipe.recv().await {
                    Ok(item) => self.delivered(&item),
                    Err(why) => return self.receiver_ended(why),
                }
                self.dawdle().await;
            }
        };
        tokio::join!(driver, user);
        self.ended().await;
        Ok(())
    }

    /// Meets the store, as the command line does.
    async fn join(&self) -> Result<TcpStore<SimNet>> {
        self.dawdle().await;
        let mut options = ConnectOptions::default();
        options.entropy = self.entropy.clone();
        options.timeout = MEET_WITHIN;
        TcpStore::connect(self.net.clone(), "store", STORE_PORT, options).await
    }

    fn tcp_config(&self) -> TcpConfig {
        TcpConfig { entropy: self.entropy.clone(), ..self.settings.tcp.clone() }
    }

    async fn ended(&self) {
        self.note("driver ended");
        self.both_ended.wait().await;
    }

    /// Does something else now and then.
    async fn dawdle(&self) {
        if self.draws.one_in(4) {
            tokio::time::sleep(Duration::from_millis(self.draws.between(1..=30))).await;
        }
    }

    fn accepted(&self, sequence: u64, item: &Item) {
        lock(&self.oracle).accepted(sequence, item);
        self.note(format_args!("accepted {sequence}: {}", Look(item)));
    }

    fn delivered(&self, item: &Item) {
        lock(&self.oracle).delivered(item);
        self.note(format_args!("took {}", Look(item)));
    }

    fn sender_ended(&self, end: SenderEnd) {
        let doubtful = |item: &&pipe::Undelivered| item.in_doubt;
        let in_doubt = end.undelivered.iter().filter(doubtful).count();
        let (closed, undelivered) = (Ended(&end.closed), end.undelivered.len());
        self.note(format_args!("{closed}, {undelivered} undelivered, {in_doubt} in doubt"));
        lock(&self.oracle).sender_ended(end);
    }

    fn receiver_ended(&self, why: Error) {
        self.note(format_args!("ended: {why}"));
        lock(&self.oracle).receiver_ended(why);
    }

    fn note(&self, event: impl std::fmt::Display) {
        self.network.trace().note(self.name, event);
    }
}

/// An item in a trace.
struct Look<'a>(&'a Item);

impl std::fmt::Display for Look<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => f.write_str("None"),
            Some(tensor) => write!(f, "{} bytes", tensor.byte_len()),
        }
    }
}

/// The result of a close in a trace.
struct Ended<'a>(&'a Result<()>);

impl std::fmt::Display for Ended<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Ok(()) => f.write_str("closed"),
            Err(error) => write!(f, "failed: {error}"),
        }
    }
}

fn lock(oracle: &Mutex<Oracle>) -> MutexGuard<'_, Oracle> {
    oracle.lock().unwrap_or_else(PoisonError::into_inner)
}

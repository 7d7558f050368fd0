//! The process that sends: says what comes next, and holds the clock.
//!
//! # How the speed is measured
//!
//! Every clock starts before the first byte is sent and stops when the receiver has said, over a
//! socket, that it holds the last item. The bare socket and the pipe send the same few buffers in
//! turn. A round has each read size of the bare socket, the pipe, and the pipe with checksums once,
//! and each round begins with another of them. What counts is the median of the rounds of each; the
//! limit is the read size with the best median. On GPUs it is NCCL alone in the place of the bare socket,
//! with groups of some sizes in the place of reads, and there are no checksums.

use std::time::Duration;

use kvpipe::Pipe;
use kvpipe::net::TokioNet;
use kvpipe::store::Store;
use kvpipe::store::tcp::TcpStore;
use kvpipe::tensor::{BufferPool, Tensor};
use kvpipe::transport::tcp::TcpConfig;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::control::{Control, PipeSettings, Step};
use super::items::{ITEMS_MAX, PACED_ITEMS_MAX, placed, scaled, sources, tensor};
use super::limit::{BareSender, KEPT_ITEMS, READ_CAPS};
use super::measurement::{Latency, Limit, LimitWay, Measurement, SizeMeasurement, Speed, median};
use super::peer::{self, CONTROL_KEY, Event, PEER_PATIENCE};
use super::raw::{RawNccl, group_sizes};
use crate::args::BenchPeerArgs;
use crate::edges::blocking;
use crate::failure::Failure;
use crate::gpu::Gpu;
use crate::output::Output;

/// Of the round trip.
const SMALL_BYTES: usize = 64;

/// Measures all that the arguments ask for.
pub(super) async fn run(args: &BenchPeerArgs, output: &Output) -> Result<(), Failure> {
    let gpu = peer::gpu(args)?;
    let address = args.store.ok_or_else(|| Failure::usage("the sender needs --store"))?;
    let store = peer::connect_store(address).await?;
    let control = store.get(CONTROL_KEY, PEER_PATIENCE).await?;
    let control = std::str::from_utf8(&control).ok().and_then(|text| text.parse().ok());
    let control = control.ok_or_else(|| Failure::new("bug in kvpipe: the receiver has no address"))?;
    // In this order: the receiver tells them apart by it.
    let first = Control::connect(control, args.patience()).await?;
    let bare = TcpStream::connect(control).await.and_then(blocking).and_then(BareSender::new);
    let bare = bare.map_err(|error| Failure::io("connecting a bare socket", &error))?;
    let raw = match &gpu {
        Some(gpu) => Some(RawNccl::meet(0, &store, gpu, args.buffer_size.0).await?),
        None => None,
    };
    let (bare, pipes) = (Some(bare), Vec::new());
    let mut sender = Sender { args, store, control: first, bare, raw, gpu, pipes, opened: 0, output };
    match args.memory {
        true => sender.fill_memory().await,
        false => sender.measure_all().await,
    }
}

struct Sender<'a> {
    args: &'a BenchPeerArgs,
    store: TcpStore<TokioNet>,
    control: Control,
    /// Absent while a thread writes to it.
    bare: Option<BareSender>,
    /// What there is in the place of it on a GPU.
    raw: Option<RawNccl>,
    gpu: Option<Gpu>,
    pipes: Vec<Pipe>,
    opened: usize,
    output: &'a Output,
}

/// One way to move items of a size.
#[derive(Clone, Copy)]
enum Way {
    Bare { read_cap: usize },
    Raw { group_items: usize },
    Pipe(usize),
}

/// Of the pipes that are opened for a size.
const AS_SHIPPED: usize = 0;
const WITH_CHECKSUM: usize = 1;

impl Sender<'_> {
    async fn measure_all(&mut self) -> Result<(), Failure> {
        for size in &self.args.sizes {
            self.begin(format!("items of {size}"))?;
            let measured = self.measure_size(size.0).await?;
            self.tell(Measurement::Size(measured))?;
        }
        self.begin("items without payload".into())?;
        let measured = self.measure_nones().await?;
        self.tell(measured)?;
        self.begin(format!("a round trip of {SMALL_BYTES} bytes"))?;
        let measured = self.measure_round_trip().await?;
        self.tell(measured)?;
        self.clear().await
    }

    fn begin(&self, what: String) -> Result<(), Failure> {
        self.output.json(&Event::Measuring(what))
    }

    fn tell(&self, measured: Measurement) -> Result<(), Failure> {
        self.output.json(&Event::Measured(measured))
    }

    async fn measure_size(&mut self, size: usize) -> Result<SizeMeasurement, Failure> {
        let sources = placed(sources(size)?, self.gpu.as_ref()).await?;
        self.clear().await?;
        let ways = self.open_ways(size).await?;
        let items = self.calibrate(&sources, &ways).await?;
        // Few, where each takes long.
        let paced = (items / 2).clamp(1, PACED_ITEMS_MAX);

        let mut rounds = vec![Vec::new(); ways.len()];
        let (mut latencies, mut limit_latencies) = (Vec::new(), Vec::new());
        for round in 0..self.args.rounds as usize {
            for turn in 0..ways.len() {
                let way = (round + turn) % ways.len();
                rounds[way].push(self.time(ways[way], &sources, items).await?);
            }
            limit_latencies.extend(self.limit_paced(&sources, paced).await?);
            latencies.extend(self.pipe_paced(&sources, paced).await?);
        }

        let mut limits = Vec::new();
        let (mut pipe, mut with_checksum) = (Speed(0.0), None);
        for (way, rounds) in ways.iter().zip(rounds) {
            let speed = Speed::of_rounds(items, rounds);
            match *way {
                Way::Bare { read_cap } => {
                    let read_cap = (read_cap != usize::MAX).then_some(read_cap);
                    limits.push(Limit { by: LimitWay::ReadCap(read_cap), speed });
                }
                Way::Raw { group_items } => {
                    limits.push(Limit { by: LimitWay::GroupItems(group_items), speed });
                }
                Way::Pipe(AS_SHIPPED) => pipe = speed,
                Way::Pipe(_) => with_checksum = Some(speed),
            }
        }
        let limit = Speed(limits.iter().map(|limit| limit.speed.0).fold(0.0, f64::max));
        let (latency, limit_latency) = (Latency::of(latencies), Latency::of(limit_latencies));
        Ok(SizeMeasurement { size, items, pipe, limit, limits, with_checksum, latency, limit_latency })
    }

    /// Opens the pipes for a size; gives all ways to move items of it.
    async fn open_ways(&mut self, size: usize) -> Result<Vec<Way>, Failure> {
        self.open(TcpConfig::default().checksum).await?;
        if self.gpu.is_some() {
            let groups = group_sizes(size, self.args.buffer_size.0);
            let limits = groups.map(|group_items| Way::Raw { group_items });
            return Ok(limits.chain([Way::Pipe(AS_SHIPPED)]).collect());
        }
        self.open(true).await?;
        let read_caps = READ_CAPS.into_iter().filter(|&cap| cap < size || cap == usize::MAX);
        let limits = read_caps.map(|read_cap| Way::Bare { read_cap });
        Ok(limits.chain([Way::Pipe(AS_SHIPPED), Way::Pipe(WITH_CHECKSUM)]).collect())
    }

    /// Uses every way and every buffer once; gives the number of items that keep the limit busy
    /// for as long as a measurement is to take.
    async fn calibrate(&mut self, sources: &[Tensor], ways: &[Way]) -> Result<u64, Failure> {
        let warm_up = 2 * (KEPT_ITEMS as u64 + 1);
        for &way in ways {
            self.time(way, sources, warm_up).await?;
        }
        let wanted = self.args.seconds.0;
        let mut items = warm_up;
        loop {
            // The faster of two: a busy moment must not make all rounds short.
            let again = self.time(ways[0], sources, items).await?;
            let elapsed = self.time(ways[0], sources, items).await?.min(again);
            if elapsed * 4 >= wanted || items >= ITEMS_MAX {
                return Ok(scaled(items, elapsed, wanted));
            }
            items *= 4;
        }
    }

    async fn time(&mut self, way: Way, sources: &[Tensor], items: u64) -> Result<Duration, Failure> {
        match way {
            Way::Bare { read_cap } => self.bare(sources, items, read_cap).await,
            Way::Raw { group_items } => self.raw(sources, items, group_items).await,
            Way::Pipe(pipe) => self.pipe(pipe, sources, items).await,
        }
    }

    async fn bare(&mut self, sources: &[Tensor], items: u64, read_cap: usize) -> Result<Duration, Failure> {
        let size = sources.first().map_or(0, Tensor::byte_len);
        self.control.begin(&Step::Bare { size, items, read_cap }).await?;
        let (sources, budget) = (payloads(sources)?, self.args.buffer_size.0);
        self.on_bare(move |bare| bare.send(&sources, items, budget)).await
    }

    async fn raw(&mut self, sources: &[Tensor], items: u64, group_items: usize) -> Result<Duration, Failure> {
        let size = sources.first().map_or(0, Tensor::byte_len);
        let step = Step::Raw { size, items, group_items };
        self.control.begin(&step).await?;
        let begin = Instant::now();
        if let Some(raw) = &self.raw {
            raw.send(sources, items, group_items).await?;
        }
        self.control.answered(&step).await?;
        Ok(begin.elapsed())
    }

    /// One at a time, without a pipe.
    async fn limit_paced(&mut self, sources: &[Tensor], items: u64) -> Result<Vec<Duration>, Failure> {
        let size = sources.first().map_or(0, Tensor::byte_len);
        if let Some(raw) = &self.raw {
            let step = Step::RawPaced { size, items };
            self.control.begin(&step).await?;
            let mut latencies = Vec::new();
            for (_, tensor) in (0..items).zip(sources.iter().cycle()) {
                let begin = Instant::now();
                raw.send(std::slice::from_ref(tensor), 1, 1).await?;
                self.control.answered(&step).await?;
                latencies.push(begin.elapsed());
            }
            return Ok(latencies);
        }
        self.control.begin(&Step::Bare { size, items, read_cap: usize::MAX }).await?;
        let sources = payloads(sources)?;
        self.on_bare(move |bare| bare.send_paced(&sources, items)).await
    }

    async fn pipe(&mut self, pipe: usize, sources: &[Tensor], items: u64) -> Result<Duration, Failure> {
        let step = Step::Pipe { pipe, items };
        self.control.begin(&step).await?;
        let pipe = &self.pipes[pipe];
        let begin = Instant::now();
        for (_, tensor) in (0..items).zip(sources.iter().cycle()) {
            pipe.send(Some(tensor.clone())).await?;
        }
        self.control.answered(&step).await?;
        Ok(begin.elapsed())
    }

    async fn pipe_paced(&mut self, sources: &[Tensor], items: u64) -> Result<Vec<Duration>, Failure> {
        let step = Step::PipePaced { pipe: AS_SHIPPED, items };
        self.control.begin(&step).await?;
        let pipe = &self.pipes[AS_SHIPPED];
        let mut latencies = Vec::new();
        for (_, tensor) in (0..items).zip(sources.iter().cycle()) {
            let begin = Instant::now();
            pipe.send(Some(tensor.clone())).await?;
            self.control.answered(&step).await?;
            latencies.push(begin.elapsed());
        }
        Ok(latencies)
    }

    async fn measure_nones(&mut self) -> Result<Measurement, Failure> {
        self.clear().await?;
        self.open(TcpConfig::default().checksum).await?;
        let mut items = 1000;
        items = loop {
            let elapsed = self.nones(items).await?;
            if elapsed * 4 >= self.args.seconds.0 || items >= ITEMS_MAX {
                break scaled(items, elapsed, self.args.seconds.0);
            }
            items *= 4;
        };
        let mut rounds = Vec::new();
        for _ in 0..self.args.rounds {
            rounds.push(self.nones(items).await?);
        }
        Ok(Measurement::Nones { items, speed: Speed::of_rounds(items, rounds), limit: None })
    }

    async fn nones(&mut self, items: u64) -> Result<Duration, Failure> {
        let step = Step::Pipe { pipe: AS_SHIPPED, items };
        self.control.begin(&step).await?;
        let begin = Instant::now();
        for _ in 0..items {
            self.pipes[AS_SHIPPED].send(None).await?;
        }
        self.control.answered(&step).await?;
        Ok(begin.elapsed())
    }

    async fn measure_round_trip(&mut self) -> Result<Measurement, Failure> {
        self.clear().await?;
        self.open(TcpConfig::default().checksum).await?;
        let small = placed(vec![tensor(SMALL_BYTES, 0)?], self.gpu.as_ref()).await?.remove(0);
        let mut count = 100;
        let elapsed: Duration = self.limit_round_trips(&small, count).await?.iter().sum();
        self.pipe_round_trips(&small, count).await?;
        count = scaled(count, elapsed, self.args.seconds.0);
        let (mut pipe, mut limit) = (Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            limit.push(median(self.limit_round_trips(&small, count).await?));
            pipe.push(median(self.pipe_round_trips(&small, count).await?));
        }
        let [pipe_us, limit_us] = [pipe, limit].map(|rounds| median(rounds).as_secs_f64() * 1e6);
        Ok(Measurement::RoundTrip { bytes: SMALL_BYTES, pipe_us, limit_us })
    }

    async fn limit_round_trips(&mut self, small: &Tensor, count: u64) -> Result<Vec<Duration>, Failure> {
        if let Some(raw) = &self.raw {
            self.control.begin(&Step::RawEcho { size: SMALL_BYTES, count }).await?;
            return raw.round_trips(small, count).await;
        }
        self.control.begin(&Step::BareEcho { size: SMALL_BYTES, count }).await?;
        self.on_bare(move |bare| bare.round_trips(&[7; SMALL_BYTES], count)).await
    }

    async fn pipe_round_trips(&mut self, tensor: &Tensor, count: u64) -> Result<Vec<Duration>, Failure> {
        self.control.begin(&Step::PipeEcho { pipe: AS_SHIPPED, count }).await?;
        let pipe = &self.pipes[AS_SHIPPED];
        let mut latencies = Vec::new();
        for _ in 0..count {
            let begin = Instant::now();
            pipe.send(Some(tensor.clone())).await?;
            pipe.recv().await?;
            latencies.push(begin.elapsed());
        }
        Ok(latencies)
    }

    /// With each size in turn, the largest first: sends fresh memory until both ends are full, then
    /// lets the receiver take everything while as much again is sent. What an end keeps of one size,
    /// it must not keep beside the next.
    async fn fill_memory(&mut self) -> Result<(), Failure> {
        self.open(TcpConfig::default().checksum).await?;
        let mut sizes: Vec<usize> = self.args.sizes.iter().map(|size| size.0).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        for size in sizes {
            let mut sent = 0;
            while self.send_fresh(size, FULL_AFTER).await? {
                sent += 1;
            }
            let step = Step::Drain { pipe: AS_SHIPPED, items: 2 * sent };
            self.control.begin(&step).await?;
            for _ in 0..sent {
                if !self.send_fresh(size, self.args.patience()).await? {
                    return Err(Failure::new("the receiver takes no items"));
                }
            }
            self.control.answered(&step).await?;
        }
        self.clear().await
    }

    /// False if there is no room for an item within `patience`.
    async fn send_fresh(&self, size: usize, patience: Duration) -> Result<bool, Failure> {
        // Only with a permit, or the item would be memory that the pipe does not yet hold.
        let reserving = self.pipes[AS_SHIPPED].sender()?.reserve(size);
        let Ok(permit) = timeout(patience, reserving).await else { return Ok(false) };
        permit?.send(Some(tensor(size, 0)?))?;
        Ok(true)
    }

    async fn open(&mut self, checksum: bool) -> Result<(), Failure> {
        self.opened += 1;
        let settings = PipeSettings {
            group: format!("bench-{}", self.opened),
            checksum,
            buffer_bytes: self.args.buffer_size.0,
        };
        self.control.begin(&Step::Open(settings.clone())).await?;
        let pool = BufferPool::new(0);
        let pipe = peer::open(0, &self.store, &settings, pool, self.gpu.as_ref()).await?;
        self.pipes.push(pipe);
        Ok(())
    }

    async fn clear(&mut self) -> Result<(), Failure> {
        self.control.begin(&Step::Clear).await?;
        for pipe in self.pipes.drain(..) {
            pipe.close().await?;
        }
        self.control.answered(&Step::Clear).await
    }

    /// On a thread of its own: this one goes on answering the pipes' heartbeats.
    async fn on_bare<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut BareSender) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let Some(mut bare) = self.bare.take() else {
            return Err(Failure::new("bug in kvpipe: the bare socket is in use"));
        };
        let (bare, outcome) = peer::on_thread(move || {
            let outcome = work(&mut bare);
            (bare, outcome)
        })
        .await?;
        self.bare = Some(bare);
        outcome.map_err(|error| Failure::io("sending over a bare socket", &error))
    }
}

/// Nothing moves for so long if both ends of a pipe are full.
const FULL_AFTER: Duration = Duration::from_millis(500);

fn payloads(tensors: &[Tensor]) -> Result<Vec<bytes::Bytes>, Failure> {
    tensors.iter().map(|tensor| Ok(tensor.bytes()?.clone())).collect()
}

//! The process that receives: does what the sender says, step by step.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kvpipe::Pipe;
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, Store};
use kvpipe::tensor::{BufferPool, Item};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::control::{Control, Step};
use super::limit::{BareReceiver, KEPT_ITEMS};
use super::peer::{self, CONTROL_KEY, Event, PEER_PATIENCE};
use super::raw::RawNccl;
use crate::args::BenchPeerArgs;
use crate::edges::blocking;
use crate::failure::Failure;
use crate::gpu::Gpu;
use crate::output::Output;
use crate::serve;

/// Serves the store, waits for the sender, and follows it to its end.
pub(super) async fn run(args: &BenchPeerArgs, output: &Output) -> Result<(), Failure> {
    let gpu = peer::gpu(args)?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let server = serve::bind(SocketAddr::new(loopback, 0), Limits::default()).await?;
    let store = peer::connect_store(server.local_addr()).await?;
    let listener =
        TcpListener::bind(SocketAddr::new(loopback, 0)).await.map_err(|error| io_failure(&error))?;
    let address = listener.local_addr().map_err(|error| io_failure(&error))?;
    store.set(CONTROL_KEY, address.to_string().into(), PEER_PATIENCE).await?;
    output.json(&Event::Store(server.local_addr()))?;

    let mut accepted = Vec::new();
    for _ in 0..2 {
        let connection = timeout(PEER_PATIENCE, listener.accept()).await;
        let connection = connection.map_err(|_| {
            Failure::new(format!("the sender did not connect within {} s", PEER_PATIENCE.as_secs()))
        })?;
        accepted.push(connection.map_err(|error| io_failure(&error))?.0);
    }
    let (Some(bare), Some(control)) = (accepted.pop(), accepted.pop()) else {
        return Err(Failure::new("bug in kvpipe: two connections are one"));
    };
    let bare = blocking(bare).and_then(BareReceiver::new).map_err(|error| io_failure(&error))?;
    let control = Control::new(control, args.patience()).map_err(|error| io_failure(&error))?;
    let raw = match &gpu {
        Some(gpu) => Some(RawNccl::meet(1, &store, gpu, args.buffer_size.0).await?),
        None => None,
    };
    let receiver = Receiver {
        control,
        bare: Some(bare),
        raw,
        gpu,
        store,
        pipes: Vec::new(),
        pool: peer::pool(),
        kept: VecDeque::new(),
        _server: server,
    };
    receiver.follow().await
}

struct Receiver {
    control: Control,
    /// Absent while a thread reads from it.
    bare: Option<BareReceiver>,
    /// What there is in the place of it on a GPU.
    raw: Option<RawNccl>,
    gpu: Option<Gpu>,
    store: TcpStore<TokioNet>,
    pipes: Vec<Pipe>,
    /// Of all pipes: they take turns, and so do their buffers.
    pool: BufferPool,
    kept: VecDeque<Item>,
    _server: TcpStoreServer,
}

impl Receiver {
    async fn follow(mut self) -> Result<(), Failure> {
        while let Some(step) = self.control.step().await? {
            match step {
                Step::Open(settings) => {
                    let pool = self.pool.clone();
                    self.pipes.push(peer::open(1, &self.store, &settings, pool, self.gpu.as_ref()).await?);
                    self.control.answer().await?;
                }
                Step::Bare { size, items, read_cap } => {
                    self.control.answer().await?;
                    self.on_bare(move |bare| bare.receive(&[size], items, read_cap)).await?;
                }
                Step::BareEcho { size, count } => {
                    self.control.answer().await?;
                    self.on_bare(move |bare| bare.echo(size, count)).await?;
                }
                Step::Raw { size, items, group_items } => {
                    self.control.answer().await?;
                    self.raw()?.receive(size, items, group_items).await?;
                    self.control.answer().await?;
                }
                Step::RawPaced { size, items } => {
                    self.control.answer().await?;
                    for _ in 0..items {
                        self.raw()?.receive(size, 1, 1).await?;
                        self.control.answer().await?;
                    }
                }
                Step::RawEcho { size, count } => {
                    self.control.answer().await?;
                    self.raw()?.echo(size, count).await?;
                }
                Step::Pipe { pipe, items } => {
                    self.control.answer().await?;
                    for _ in 0..items {
                        self.receive_from(pipe).await?;
                    }
                    self.control.answer().await?;
                }
                Step::PipePaced { pipe, items } => {
                    self.control.answer().await?;
                    for _ in 0..items {
                        self.receive_from(pipe).await?;
                        self.control.answer().await?;
                    }
                }
                Step::PipeEcho { pipe, count } => {
                    let pipe = self.pipe(pipe)?.clone();
                    self.control.answer().await?;
                    for _ in 0..count {
                        pipe.send(pipe.recv().await?).await?;
                    }
                }
                Step::Clear => {
                    self.control.answer().await?;
                    self.kept.clear();
                    self.pool = peer::pool();
                    for pipe in self.pipes.drain(..) {
                        pipe.close().await?;
                    }
                    self.control.answer().await?;
                }
                Step::Drain { pipe, items } => {
                    self.control.answer().await?;
                    for _ in 0..items {
                        self.pipe(pipe)?.recv().await?;
                    }
                    self.control.answer().await?;
                }
            }
        }
        Ok(())
    }

    fn raw(&self) -> Result<&RawNccl, Failure> {
        self.raw.as_ref().ok_or_else(|| Failure::new("bug in kvpipe: there is no NCCL"))
    }

    fn pipe(&self, index: usize) -> Result<&Pipe, Failure> {
        self.pipes.get(index).ok_or_else(|| Failure::new(format!("bug in kvpipe: there is no pipe {index}")))
    }

    async fn receive_from(&mut self, pipe: usize) -> Result<(), Failure> {
        let item = self.pipe(pipe)?.recv().await?;
        if self.kept.len() == KEPT_ITEMS {
            self.kept.pop_front();
        }
        self.kept.push_back(item);
        Ok(())
    }

    /// On a thread of its own: this one goes on answering the pipes' heartbeats.
    async fn on_bare(
        &mut self,
        work: impl FnOnce(&mut BareReceiver) -> io::Result<()> + Send + 'static,
    ) -> Result<(), Failure> {
        let Some(mut bare) = self.bare.take() else {
            return Err(Failure::new("bug in kvpipe: the bare socket is in use"));
        };
        let (bare, outcome) = peer::on_thread(move || {
            let outcome = work(&mut bare);
            (bare, outcome)
        })
        .await?;
        self.bare = Some(bare);
        outcome.map_err(|error| io_failure(&error))
    }
}

fn io_failure(error: &io::Error) -> Failure {
    Failure::io("receiving over a bare socket", error)
}

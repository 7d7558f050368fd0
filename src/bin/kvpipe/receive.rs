//! `kvpipe recv`: tensors from the previous rank, shown and perhaps kept in a file.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{self, ExitCode};
use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::pipe::Receiver;
use kvpipe::tensor::{DType, Item, Tensor, safetensors};
use kvpipe::transport::nccl::NcclIncoming;
use kvpipe::transport::store::StoreIncoming;
use kvpipe::transport::tcp::TcpIncoming;
use kvpipe::transport::{Incoming, Transport};
use kvpipe::{Error, Pipe};
use serde::Serialize;
use tokio::time::timeout;

use crate::args::RecvArgs;
use crate::endpoint::{self, Place, Way};
use crate::failure::{self, Failure};
use crate::output::Output;
use crate::rendezvous::{Membership, Rendezvous};
use crate::units::{Count, Size};
use crate::vllm::{VllmEdges, VllmRank};

/// Receives until the end, then waits until the others have left the store, if it is ours.
pub(crate) async fn run(args: RecvArgs) -> Result<ExitCode, Failure> {
    let place = Place::new(&args.rank)?;
    if place.path.is_vllms() && args.output.is_some() && args.count.is_none() {
        return Err(Failure::usage("--output needs --count on vllm's wire, which has no end to write it at"));
    }
    if let Some(path) = &args.output {
        // What has been received can't be received again, so this is the time to find out.
        check_writable(path)?;
    }
    let way = endpoint::rank_way(&args.rank, &place)?;
    let output = Output::new(args.rank.json).with_progress(None);
    if let Some(gpu) = way.gpu() {
        output.note(format_args!("receives on {gpu}"));
    }
    let ring = place.ring;
    let (outcome, membership) = match way {
        Way::Tcp(config) => {
            let rendezvous = Rendezvous::join(&place, &output).await?;
            let listen = async |address| {
                let incoming =
                    TcpIncoming::bind(TokioNet, &rendezvous.store(), ring, address, config).await?;
                Ok((incoming.local_addr(), incoming))
            };
            let outcome = listen_and_transfer(&args, place, listen, &rendezvous, &output).await;
            (outcome, Membership::Native(rendezvous))
        }
        Way::Store(config) => {
            let rendezvous = Rendezvous::join(&place, &output).await?;
            let incoming = StoreIncoming::new(rendezvous.store(), ring, config);
            (transfer(&args, place, incoming, &output).await, Membership::Native(rendezvous))
        }
        Way::Nccl(config) => {
            let rendezvous = Rendezvous::join(&place, &output).await?;
            let listen = async |address| {
                let incoming =
                    NcclIncoming::bind(TokioNet, &rendezvous.store(), ring, address, config).await?;
                Ok((incoming.local_addr(), incoming))
            };
            let outcome = listen_and_transfer(&args, place, listen, &rendezvous, &output).await;
            (outcome, Membership::Native(rendezvous))
        }
        Way::Vllm(config) => {
            let rank = VllmRank::join(&place, config, &output).await?;
            let outcome = match rank.edges().await {
                Ok(VllmEdges::Store(edges)) => transfer(&args, place, edges.split().1, &output).await,
                Ok(VllmEdges::Nccl(edges)) => transfer(&args, place, edges.split().1, &output).await,
                Err(failure) => Err(failure),
            };
            (outcome, Membership::Vllm(rank))
        }
    };
    output.finish_progress();
    let code = failure::report(outcome);
    membership.leave(&output).await;
    Ok(code)
}

/// Where the peer connects to us.
async fn listen_and_transfer<I: Incoming>(
    args: &RecvArgs,
    place: Place,
    listen: impl AsyncFnOnce(SocketAddr) -> Result<(SocketAddr, I), Error>,
    rendezvous: &Rendezvous,
    output: &Output,
) -> Result<(), Failure> {
    let (address, incoming) = listen(SocketAddr::new(published_ip(args, rendezvous)?, 0)).await?;
    output.note(format_args!("rank {} receives at {address}", place.ring.rank()));
    transfer(args, place, incoming, output).await
}

async fn transfer(
    args: &RecvArgs,
    place: Place,
    incoming: impl Incoming,
    output: &Output,
) -> Result<(), Failure> {
    let ring = place.ring;
    let (pipe, driver) = Pipe::receive_only(incoming, place.limits);
    let mut driver = tokio::spawn(driver);
    let mut received = Received::default();
    let ended = receive_all(pipe.receiver()?, args, output, &mut received).await;
    if timeout(GOODBYE, &mut driver).await.is_err() {
        driver.abort();
        let _cancelled = driver.await;
    }
    let written = match (&ended, &args.output) {
        (Ok(()), Some(path)) => safetensors::write(path, &received.kept).map_err(Failure::from),
        _ => Ok(()),
    };
    let line = received.line(ring.previous());
    let failure = match ended.and(written) {
        Ok(()) => return output.result(line, &received.summary(true)),
        Err(failure) => failure.detail(line),
    };
    output.json(&received.summary(false))?;
    Err(match &args.output {
        Some(path) => failure.detail(format!("{} was not written", path.display())),
        None => failure,
    })
}

fn published_ip(args: &RecvArgs, rendezvous: &Rendezvous) -> Result<IpAddr, Failure> {
    if let Some(host) = args.rank.host {
        return Ok(host);
    }
    match rendezvous.served_at() {
        Some(served) if served.ip().is_unspecified() => Err(Failure::usage(format!(
            "the store at {served} listens on every address: say with --host at which one to receive"
        ))),
        _ => Ok(rendezvous.local_ip()),
    }
}

/// Until the peer closes, enough have come, or something fails. The peer learns of it in each case.
async fn receive_all(
    receiver: &Receiver,
    args: &RecvArgs,
    output: &Output,
    received: &mut Received,
) -> Result<(), Failure> {
    let received = loop {
        if args.count.is_some_and(|count| received.items >= count) {
            break Ok(());
        }
        match receiver.recv().await {
            Ok(item) => {
                if let Err(failure) = received.take(item, args.output.is_some(), output) {
                    break Err(failure);
                }
            }
            Err(Error::Closed) => break Ok(()),
            Err(error) => break Err(error.into()),
        }
    };
    // A peer that does not listen is no reason to wait for long.
    let _told = timeout(GOODBYE, receiver.close()).await;
    received
}

/// For telling the peer that we leave.
const GOODBYE: Duration = Duration::from_secs(5);

/// What has arrived.
#[derive(Default)]
struct Received {
    items: u64,
    tensors: u64,
    bytes: u64,
    /// Named by index; only if there is a file to write.
    kept: Vec<(String, Tensor)>,
}

/// An item on a line of its own.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Tensor { index: u64, dtype: &'a str, shape: &'a [usize], bytes: usize, crc32c: String },
    None { index: u64, none: bool },
}

#[derive(Serialize)]
struct Summary {
    received: u64,
    tensors: u64,
    bytes: u64,
    complete: bool,
}

impl Received {
    fn take(&mut self, item: Item, keep: bool, output: &Output) -> Result<(), Failure> {
        let index = self.items;
        self.items += 1;
        let Some(tensor) = item else {
            return output.result(format_args!("{index:>6}  none"), &Line::None { index, none: true });
        };
        let crc32c = format!("{:08x}", crc32c::crc32c(tensor.bytes()?));
        let (dtype, shape, bytes) = (tensor.dtype().json_name(), *tensor.shape(), tensor.byte_len());
        self.tensors += 1;
        self.bytes += bytes as u64;
        let line =
            format!("{index:>6}  {dtype:<8}  {shape}  {}  crc32c {crc32c}", Count(bytes as u64, "byte"));
        let json = Line::Tensor { index, dtype: &dtype, shape: shape.dims(), bytes, crc32c };
        output.result(line, &json)?;
        output.progress(self.bytes, format_args!("{} items received", self.items));
        if keep {
            check_storable(index, &tensor)?;
            self.kept.push((format!("{index:06}"), tensor));
        }
        Ok(())
    }

    fn line(&self, peer: usize) -> String {
        let (items, tensors) = (Count(self.items, "item"), Count(self.tensors, "tensor"));
        format!("received {items} ({tensors}, {}) from rank {peer}", Size(self.bytes))
    }

    fn summary(&self, complete: bool) -> Summary {
        Summary { received: self.items, tensors: self.tensors, bytes: self.bytes, complete }
    }
}

/// Better now than when everything has been received.
fn check_storable(index: u64, tensor: &Tensor) -> Result<(), Failure> {
    let dtype = tensor.dtype();
    // The library writes pairs of 4-bit floats as twice as many F4.
    if dtype.safetensors_name().is_some() || dtype == DType::Float4E2m1fnX2 {
        return Ok(());
    }
    Err(Failure::new(format!("item {index} is of dtype {dtype}, which safetensors files can't hold"))
        .hint("without --output, tensors of every dtype are received"))
}

/// Tries what writing the file will begin with: a new file beside it.
fn check_writable(path: &Path) -> Result<(), Failure> {
    let doing = || format!("writing {}", path.display());
    let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
        return Err(Failure::io(doing(), &io::ErrorKind::IsADirectory.into()));
    };
    let mut probe = name.to_os_string();
    probe.push(format!(".kvpipe-{}", process::id()));
    let probe = path.with_file_name(probe);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)
        .and_then(|_file| fs::remove_file(&probe))
        .map_err(|error| Failure::io(doing(), &error))
}

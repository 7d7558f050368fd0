//! `kvpipe send`: tensors of files, and Nones, to the next rank.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::pipe::Sender;
use kvpipe::tensor::{Item, safetensors};
use kvpipe::transport::nccl::NcclOutgoing;
use kvpipe::transport::store::StoreOutgoing;
use kvpipe::transport::tcp::TcpOutgoing;
use kvpipe::transport::{Outgoing, Transport};
use kvpipe::{Error, Pipe};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::args::{self, SendArgs};
use crate::endpoint::{self, Place, Way};
use crate::failure::{self, Failure};
use crate::output::{Output, PROGRESS_INTERVAL};
use crate::rendezvous::{Membership, Rendezvous};
use crate::units::{Count, Size};
use crate::vllm::{VllmEdges, VllmRank};

/// Sends everything, then waits until the others have left the store, if it is ours.
pub(crate) async fn run(args: SendArgs) -> Result<ExitCode, Failure> {
    let place = Place::new(&args.rank)?;
    let items = read_items(&args.items)?;
    let way = endpoint::rank_way(&args.rank, &place)?;
    let bytes = items.iter().map(Planned::bytes).sum();
    let output = Output::new(args.rank.json).with_progress(Some(bytes));
    if let Some(gpu) = way.gpu() {
        output.note(format_args!("sends from {gpu}"));
    }
    let ring = place.ring;
    let (outcome, membership) = match way {
        Way::Tcp(config) => {
            let rendezvous = Rendezvous::join(&place, &output).await?;
            let outgoing = TcpOutgoing::new(TokioNet, rendezvous.store(), ring, config);
            (transfer(&place, outgoing, &items, &output).await, Membership::Native(rendezvous))
        }
        Way::Store(config) => {
            let rendezvous = Rendezvous::join(&place, &output).await?;
            let outgoing = StoreOutgoing::new(rendezvous.store(), ring, config);
            (transfer(&place, outgoing, &items, &output).await, Membership::Native(rendezvous))
        }
        Way::Nccl(config) => {
            let rendezvous = Rendezvous::join(&place, &output).await?;
            let outcome = match NcclOutgoing::new(TokioNet, rendezvous.store(), ring, config) {
                Ok(outgoing) => transfer(&place, outgoing, &items, &output).await,
                Err(error) => Err(error.into()),
            };
            (outcome, Membership::Native(rendezvous))
        }
        Way::Vllm(config) => {
            let rank = VllmRank::join(&place, config, &output).await?;
            let outcome = match rank.edges().await {
                Ok(VllmEdges::Store(edges)) => transfer(&place, edges.split().0, &items, &output).await,
                Ok(VllmEdges::Nccl(edges)) => transfer(&place, edges.split().0, &items, &output).await,
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

/// An item that is to be sent, and what to call it.
struct Planned {
    name: String,
    item: Item,
}

impl Planned {
    fn bytes(&self) -> u64 {
        self.item.as_ref().map_or(0, |tensor| tensor.byte_len() as u64)
    }
}

/// Everything that was asked for, in order. Whatever is wrong with a file is found here.
fn read_items(arguments: &[PathBuf]) -> Result<Vec<Planned>, Failure> {
    let mut items = Vec::new();
    for argument in arguments {
        if argument == Path::new("none") {
            items.push(Planned { name: "none".into(), item: None });
            continue;
        }
        for (name, tensor) in safetensors::read(argument)? {
            items.push(Planned { name: format!("{name:?} of {}", argument.display()), item: Some(tensor) });
        }
    }
    Ok(items)
}

async fn transfer(
    place: &Place,
    outgoing: impl Outgoing,
    items: &[Planned],
    output: &Output,
) -> Result<(), Failure> {
    let (ring, path, patience) = (place.ring, place.path, place.timeout);
    let (pipe, driver) = Pipe::send_only(outgoing, place.limits.clone());
    let mut driver = tokio::spawn(driver);
    let sender = pipe.sender()?;
    let started = Instant::now();
    let sent = tokio::select! {
        biased;
        sent = send_all(sender, items, patience) => sent,
        never = show_progress(sender, path, output) => match never {},
    };
    // When sending times out, the driver's own deadline passes as well, and it knows better what was
    // missing.
    let ended = timeout(endpoint::MARGIN, &mut driver).await.is_ok();
    let reason = sent.err().map(|error| sender.failure().unwrap_or(error));
    if let Some(error) = &reason
        && !ended
    {
        // The peer is told, if it can be.
        sender.abort(&error.to_string());
        if timeout(endpoint::MARGIN, &mut driver).await.is_err() {
            driver.abort();
            let _cancelled = driver.await;
        }
    }
    // Nothing changes any more, so the report is final.
    let report = Report::new(items, sender, reason.as_ref(), started.elapsed());
    match reason {
        None => output.result(report.line(path, ring.next()), &report),
        Some(error) => {
            output.json(&report)?;
            Err(report.failure(error))
        }
    }
}

async fn send_all(sender: &Sender, items: &[Planned], patience: Duration) -> Result<(), Error> {
    for planned in items {
        send_one(sender, &planned.item, patience).await?;
    }
    sender.close().await
}

/// Waits for room for as long as the peer takes something every now and then.
async fn send_one(sender: &Sender, item: &Item, patience: Duration) -> Result<(), Error> {
    loop {
        let delivered = sender.stats().delivered_items;
        match sender.send_timeout(item.clone(), patience).await {
            Err(Error::Timeout { .. }) if sender.stats().delivered_items > delivered => {}
            sent => return sent.map(drop),
        }
    }
}

async fn show_progress(sender: &Sender, path: args::Path, output: &Output) -> Infallible {
    loop {
        let stats = sender.stats();
        let done = done(path);
        output.progress(stats.delivered_bytes, format_args!("{} items {done}", stats.delivered_items));
        sleep(PROGRESS_INTERVAL).await;
    }
}

/// What an item is that counts as delivered. On vLLM's wire nobody says that it has come.
fn done(path: args::Path) -> &'static str {
    match path {
        args::Path::Tcp | args::Path::Store | args::Path::Nccl => "delivered",
        args::Path::Vllm => "stored",
        args::Path::VllmNccl => "sent",
    }
}

/// What became of the items.
#[derive(Serialize)]
struct Report<'a> {
    /// How many were to be sent.
    items: usize,
    /// How many the peer's inbox has acknowledged, or on vLLM's wire the store or the GPU; always the first
    /// ones.
    delivered: u64,
    /// Their payloads' bytes.
    bytes: u64,
    /// How many the receiver's user took, if it closed before the end.
    taken: Option<u64>,
    /// Handed to the network, and not known to have arrived.
    in_doubt: Vec<Entry<'a>>,
    /// Certainly not in the hands of the receiver's user.
    undelivered: Vec<Entry<'a>>,
    seconds: f64,
    complete: bool,
    error: Option<String>,
}

#[derive(Serialize)]
struct Entry<'a> {
    sequence: usize,
    name: &'a str,
}

impl<'a> Report<'a> {
    fn new(items: &'a [Planned], sender: &Sender, reason: Option<&Error>, elapsed: Duration) -> Self {
        let stats = sender.stats();
        let entry =
            |sequence: usize| Entry { sequence, name: items.get(sequence).map_or("", |item| &item.name) };
        let taken = match reason {
            Some(Error::ReceiverClosed { taken, .. }) => Some(*taken),
            _ => None,
        };
        let in_doubt: Vec<usize> = match taken {
            // The receiver has told us: what it did not take, it has dropped.
            Some(_) => Vec::new(),
            None => sender
                .undelivered()
                .iter()
                .filter(|item| item.in_doubt)
                .map(|item| index(item.sequence))
                .collect(),
        };
        let first_lost = match (taken, in_doubt.last()) {
            (Some(taken), _) => index(taken),
            (None, Some(last)) => last + 1,
            (None, None) => index(stats.delivered_items),
        };
        Self {
            items: items.len(),
            delivered: stats.delivered_items,
            bytes: stats.delivered_bytes,
            taken,
            in_doubt: in_doubt.into_iter().map(entry).collect(),
            undelivered: (first_lost..items.len()).map(entry).collect(),
            seconds: elapsed.as_secs_f64(),
            complete: reason.is_none(),
            error: reason.map(ToString::to_string),
        }
    }

    fn line(&self, path: args::Path, peer: usize) -> String {
        let Self { delivered, bytes, seconds, .. } = self;
        let (done, to) = (done(path), if path == args::Path::Vllm { "for" } else { "to" });
        format!("{done} {} ({}) {to} rank {peer} in {seconds:.3} s", Count(*delivered, "item"), Size(*bytes))
    }

    fn failure(&self, error: Error) -> Failure {
        let mut failure = Failure::from(error).detail(format!(
            "delivered: {} of {} ({})",
            self.delivered,
            Count(self.items as u64, "item"),
            Size(self.bytes)
        ));
        if let Some(taken) = self.taken {
            failure = failure.detail(format!("taken by the receiver: {}", Count(taken, "item")));
        }
        for (what, entries) in [("in doubt", &self.in_doubt), ("not delivered", &self.undelivered)] {
            if !entries.is_empty() {
                failure = failure.detail(format!("{what}: {}", listed(entries)));
            }
        }
        failure
    }
}

/// How many items a line on the terminal names.
const NAMED_ITEMS: usize = 8;

fn listed(entries: &[Entry<'_>]) -> String {
    let names = entries.iter().take(NAMED_ITEMS).map(|entry| format!("#{} {}", entry.sequence, entry.name));
    let mut line =
        format!("{}: {}", Count(entries.len() as u64, "item"), names.collect::<Vec<_>>().join(", "));
    if let more @ 1.. = entries.len().saturating_sub(NAMED_ITEMS) {
        line += &format!(", and {more} more");
    }
    line
}

/// A sequence number of ours, which counts things in memory.
fn index(sequence: u64) -> usize {
    usize::try_from(sequence).unwrap_or(usize::MAX)
}

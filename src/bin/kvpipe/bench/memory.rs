//! The memory transport, between two threads of this process that have a runtime each.
//!
//! Nothing is copied, so the speed is that of handing over references, and bytes mean little. The limit
//! is the bounded channel of std, which hands the same references to a thread that blocks on it: no
//! budget in bytes, no sequence numbers, no acknowledgement. Both threads read the same clock, so a
//! figure is from the first send to the moment when the last item is in the receiver's hands.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kvpipe::tensor::{Item, Tensor};
use kvpipe::transport::memory;
use kvpipe::{Pipe, PipeConfig};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::limit::KEPT_ITEMS;
use super::measurement::{Latency, Limit, LimitWay, Measurement, SizeMeasurement, Speed};
use super::peer::Event;
use super::report::Report;
use super::{Plan, items};
use crate::failure::Failure;
use crate::output::Output;
use crate::serve::StopSignals;

/// Measures on threads of their own, so that a signal finds this one awake.
pub(super) async fn run(
    plan: &Plan,
    report: &mut Report<'_>,
    output: &Output,
    stop: &mut StopSignals,
) -> Result<(), Failure> {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let plan = plan.clone();
    let measuring = move || {
        let outcome = measure_all(&plan, &|event| drop(tell.send(Ok(event))));
        if let Err(failure) = outcome {
            drop(tell.send(Err(failure)));
        }
    };
    let thread = thread::Builder::new().name("kvpipe-bench".into()).spawn(measuring);
    thread.map_err(|error| Failure::io("starting a thread", &error))?;
    loop {
        let event = tokio::select! {
            biased;
            event = told.recv() => event,
            signal = stop.received() => return Err(Failure::new(format!("stopped by {signal}"))),
        };
        match event.transpose()? {
            Some(Event::Measuring(what)) => output.doing(&what),
            Some(Event::Measured(measured)) => report.measured(measured)?,
            Some(Event::Store(_) | Event::Peak { .. }) => {}
            None => return Ok(()),
        }
    }
}

fn measure_all(plan: &Plan, tell: &impl Fn(Event)) -> Result<(), Failure> {
    for size in &plan.sizes {
        tell(Event::Measuring(format!("items of {size}")));
        let sources: Vec<Item> = items::sources(size.0)?.into_iter().map(Some).collect();
        let Figures { items, pipe, limit, latency, limit_latency } = measure(plan, &sources)?;
        tell(Event::Measured(Measurement::Size(SizeMeasurement {
            size: size.0,
            items,
            pipe,
            limit,
            limits: vec![Limit { by: LimitWay::ReadCap(None), speed: limit }],
            with_checksum: None,
            latency,
            limit_latency,
        })));
    }
    tell(Event::Measuring("items without payload".into()));
    let Figures { items, pipe, limit, .. } = measure(plan, &[None])?;
    tell(Event::Measured(Measurement::Nones { items, speed: pipe, limit: Some(limit) }));
    Ok(())
}

struct Figures {
    items: u64,
    pipe: Speed,
    limit: Speed,
    latency: Latency,
    limit_latency: Latency,
}

fn measure(plan: &Plan, sources: &[Item]) -> Result<Figures, Failure> {
    let config = plan.pipe_config();
    let mut items = FIRST_ITEMS;
    items = loop {
        let elapsed = through_pipe(sources, items, &config, Pace::Full)?.elapsed;
        if elapsed * 4 >= plan.seconds.0 || items >= items::ITEMS_MAX {
            break items::scaled(items, elapsed, plan.seconds.0);
        }
        items *= 4;
    };
    let paced = items.min(items::PACED_ITEMS_MAX);
    let (mut pipe, mut limit) = (Vec::new(), Vec::new());
    let (mut latencies, mut limit_latencies) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        limit.push(through_channel(sources, items, &config, Pace::Full)?.elapsed);
        pipe.push(through_pipe(sources, items, &config, Pace::Full)?.elapsed);
        limit_latencies.extend(through_channel(sources, paced, &config, Pace::OneAtATime)?.latencies);
        latencies.extend(through_pipe(sources, paced, &config, Pace::OneAtATime)?.latencies);
    }
    Ok(Figures {
        items,
        pipe: Speed::of_rounds(items, pipe),
        limit: Speed::of_rounds(items, limit),
        latency: Latency::of(latencies),
        limit_latency: Latency::of(limit_latencies),
    })
}

const FIRST_ITEMS: u64 = 1000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Full,
    /// The next once the receiver has the last.
    OneAtATime,
}

/// What the sender found.
struct Timing {
    elapsed: Duration,
    /// Of each item, if they went one at a time.
    latencies: Vec<Duration>,
}

fn through_pipe(sources: &[Item], items: u64, config: &PipeConfig, pace: Pace) -> Result<Timing, Failure> {
    let (outgoing, incoming) = memory::edge(memory::Script::new());
    let (ready, awaited) = mpsc::channel();
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            current_thread()?.block_on(async {
                let (pipe, driver) = Pipe::receive_only(incoming, config.clone());
                driver.spawn()?;
                let _ = ready.send(());
                let mut kept = VecDeque::with_capacity(KEPT_ITEMS + 1);
                for number in 1..=items {
                    keep(&mut kept, pipe.recv().await?);
                    if pace == Pace::OneAtATime || number == items {
                        let _ = arrived.send(Instant::now());
                    }
                }
                // Also says that everything was taken.
                pipe.close().await?;
                Ok::<(), Failure>(())
            })
        });
        let sent = current_thread()?.block_on(async {
            let (pipe, driver) = Pipe::send_only(outgoing, config.clone());
            driver.spawn()?;
            awaited.recv().map_err(|_| left())?;
            let mut latencies = Vec::new();
            let begin = Instant::now();
            for (_, item) in (0..items).zip(sources.iter().cycle()) {
                let before = Instant::now();
                pipe.send(item.clone()).await?;
                if pace == Pace::OneAtATime {
                    latencies.push(arrivals.recv().await.ok_or_else(left)? - before);
                }
            }
            let elapsed = match pace {
                Pace::Full => arrivals.recv().await.ok_or_else(left)? - begin,
                Pace::OneAtATime => begin.elapsed(),
            };
            pipe.close().await?;
            Ok(Timing { elapsed, latencies })
        });
        receiving.join().map_err(|_| left())??;
        sent
    })
}

fn through_channel(sources: &[Item], items: u64, config: &PipeConfig, pace: Pace) -> Result<Timing, Failure> {
    let size = sources.first().and_then(Option::as_ref).map_or(1, Tensor::byte_len).max(1);
    let (sender, receiver) = mpsc::sync_channel((config.budget_bytes / size).clamp(1, config.max_items));
    let (arrived, arrivals) = mpsc::channel();
    let (ready, awaited) = mpsc::channel();
    thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            let _ = ready.send(());
            let mut kept = VecDeque::with_capacity(KEPT_ITEMS + 1);
            for number in 1..=items {
                keep(&mut kept, receiver.recv().map_err(|_| left())?);
                if pace == Pace::OneAtATime || number == items {
                    let _ = arrived.send(Instant::now());
                }
            }
            Ok::<(), Failure>(())
        });
        awaited.recv().map_err(|_| left())?;
        let mut latencies = Vec::new();
        let begin = Instant::now();
        for (_, item) in (0..items).zip(sources.iter().cycle()) {
            let before = Instant::now();
            sender.send(item.clone()).map_err(|_| left())?;
            if pace == Pace::OneAtATime {
                latencies.push(arrivals.recv().map_err(|_| left())? - before);
            }
        }
        let elapsed = match pace {
            Pace::Full => arrivals.recv().map_err(|_| left())? - begin,
            Pace::OneAtATime => begin.elapsed(),
        };
        receiving.join().map_err(|_| left())??;
        Ok(Timing { elapsed, latencies })
    })
}

fn keep(kept: &mut VecDeque<Item>, item: Item) {
    if kept.len() == KEPT_ITEMS {
        kept.pop_front();
    }
    kept.push_back(item);
}

fn current_thread() -> Result<Runtime, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::io("starting a runtime", &error))
}

fn left() -> Failure {
    Failure::new("bug in kvpipe: a thread of the benchmark has left early")
}

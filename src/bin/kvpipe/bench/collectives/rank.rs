//! A rank of kvpipe, as a process of its own: does what the parent says, by a process group or by bare
//! sockets.

use std::process::ExitCode;

use kvpipe::transport::Ring;

use super::group::Group;
use super::ring::BareRing;
use super::step::{Contender, Event, Step};
use crate::args::BenchRankArgs;
use crate::bench::peer::on_thread;
use crate::children;
use crate::edges::Edges;
use crate::failure::Failure;
use crate::output::Output;
use crate::rendezvous::{Rendezvous, reachable};

pub(crate) async fn run(args: BenchRankArgs) -> Result<ExitCode, Failure> {
    let mut told = children::told_by_parent::<Step>()?;
    let output = Output::new(true);
    let ring = Ring::new(args.rank, args.ranks)?;
    let rendezvous = Rendezvous::of_children(args.store, ring, args.patience.0).await?;
    if let Some(address) = rendezvous.served_at() {
        output.json(&Event::Store(reachable(address)))?;
    }
    let store = rendezvous.store();
    let edges = Edges::connect(&store, "bench", ring, args.patience.0).await?;
    let mut bare = BareRing::new(edges, ring).map_err(|error| Failure::io("a bare socket", &error))?;
    let mut group = Group::join(&store, ring, args.patience.0).await?;
    output.json(&Event::Done(0.0))?;
    while let Some(step) = told.recv().await {
        let seconds = match step? {
            Step::Prepare(work) => {
                bare.prepare(work);
                group.prepare(work).await?;
                0.0
            }
            Step::Run { way, count, warm_up } if way.contender() == Contender::Bare => {
                // On a thread of its own: this one goes on answering the group's heartbeats.
                let (back, outcome) = on_thread(move || {
                    let outcome = bare.time(way, count, warm_up);
                    (bare, outcome)
                })
                .await?;
                bare = back;
                outcome.map_err(|error| Failure::io("moving bytes over bare sockets", &error))?.as_secs_f64()
            }
            Step::Run { count, warm_up, .. } => group.time(count, warm_up).await?.as_secs_f64(),
            Step::Leave => break,
        };
        output.json(&Event::Done(seconds))?;
    }
    group.leave().await?;
    rendezvous.leave(&output).await;
    Ok(ExitCode::SUCCESS)
}

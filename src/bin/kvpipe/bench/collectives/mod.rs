//! `kvpipe bench collectives`: process groups beside gloo and bare sockets, in the same run.
//!
//! For each number of ranks as many processes of kvpipe, which have the bare sockets as well, and as many
//! of Python with torch. All are there from the beginning and do nothing until they are told to, so
//! whatever disturbs the machine disturbs one as it does the others. A rank has its own clock; what
//! counts of a round is the slowest rank's.

mod gloo;
mod group;
mod rank;
mod report;
mod ring;
mod step;
mod team;

use std::process::ExitCode;
use std::time::Duration;

use self::gloo::Gloo;
pub(crate) use self::rank::run as run_rank;
use self::report::{Figure, Measured, Report};
use self::step::{Contender, Event, Step, Way, Work};
use self::team::Team;
use crate::args::CollectivesArgs;
use crate::children::Children;
use crate::failure::Failure;
use crate::output::Output;
use crate::serve::StopSignals;
use crate::units::ByteSize;

/// Measures everything, and shows each figure once it is known.
pub(crate) async fn run(args: CollectivesArgs) -> Result<ExitCode, Failure> {
    check(&args)?;
    let output = Output::new(args.json).with_spinner();
    let mut stop = StopSignals::new()?;
    let outcome = tokio::select! {
        biased;
        outcome = measure_all(&args, &output) => outcome,
        signal = stop.received() => Err(Failure::new(format!("stopped by {signal}"))),
    };
    output.finish_progress();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// The most bytes of a result: each rank has several.
const RESULT_BYTES_MAX: usize = 4 << 30;

fn check(args: &CollectivesArgs) -> Result<(), Failure> {
    let ranks = args.ranks.iter().copied().max().unwrap_or(0);
    for size in &args.sizes {
        if !size.0.is_multiple_of(size_of::<f32>()) {
            return Err(Failure::usage(format!("{size} are not a whole number of f32, which have 4 bytes")));
        }
        if size.0.saturating_mul(ranks.into()) > RESULT_BYTES_MAX {
            let limit = ByteSize(RESULT_BYTES_MAX);
            return Err(Failure::usage(format!("{size} from each of {ranks} ranks are over {limit}")));
        }
    }
    Ok(())
}

async fn measure_all(args: &CollectivesArgs, output: &Output) -> Result<(), Failure> {
    output.doing("nothing yet: looking for torch");
    let gloo = Gloo::find().await;
    let mut report = Report::new(output);
    report.begin(args, gloo.as_ref())?;
    for &ranks in &args.ranks {
        let mut children = Children::new(output)?;
        let outcome = measure(args, gloo.as_ref().ok(), ranks, &mut children, &mut report).await;
        children.end_all().await;
        outcome?;
    }
    report.end()
}

/// With one number of ranks.
async fn measure(
    args: &CollectivesArgs,
    gloo: Option<&Gloo>,
    ranks: u16,
    children: &mut Children<Event>,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    report.doing(format_args!("nothing yet: starting {ranks} ranks"));
    let mut teams = Teams::start(args, gloo, ranks, children).await?;
    for &operation in &args.operations {
        for &size in &args.sizes {
            report.doing(format_args!("{operation} of {size} by {ranks} ranks"));
            let work = Work { operation, elements: size.0 / size_of::<f32>() };
            let figures = teams.measure(args, work, children).await?;
            report.measured(Measured { operation, ranks, size: size.0, figures })?;
        }
    }
    teams.leave().await?;
    while children.next().await?.is_some() {}
    Ok(())
}

/// However small and however fast.
const COUNT_MAX: u64 = 1_000_000;

/// Before each measurement, one operation for as many: whoever has waited for its turn finds caches and
/// connections cold.
const WARM_UP_SHARE: u64 = 8;

/// How long ranks may take to start, and over anything else: torch takes long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who takes turns.
struct Teams {
    kvpipe: Team,
    gloo: Option<Team>,
}

impl Teams {
    async fn start(
        args: &CollectivesArgs,
        gloo: Option<&Gloo>,
        ranks: u16,
        children: &mut Children<Event>,
    ) -> Result<Self, Failure> {
        let patience = PATIENCE.saturating_add(args.seconds.0.saturating_mul(100));
        let kvpipe = Team::of_kvpipe(children, ranks, patience).await?;
        let gloo = match gloo {
            Some(gloo) => Some(Team::of_gloo(children, gloo, ranks, patience).await?),
            None => None,
        };
        Ok(Self { kvpipe, gloo })
    }

    /// Has all end, which they do while this is still there.
    async fn leave(&mut self) -> Result<(), Failure> {
        self.kvpipe.leave().await?;
        match &mut self.gloo {
            Some(gloo) => gloo.leave().await,
            None => Ok(()),
        }
    }

    /// Every way as often as there are rounds, one after the other in each.
    async fn measure(
        &mut self,
        args: &CollectivesArgs,
        work: Work,
        children: &mut Children<Event>,
    ) -> Result<Vec<Figure>, Failure> {
        let ways = Way::all(work.operation, self.gloo.is_some());
        self.kvpipe.take(Step::Prepare(work), children).await?;
        if let Some(gloo) = &mut self.gloo {
            gloo.take(Step::Prepare(work), children).await?;
        }
        let mut figures = Vec::new();
        for way in ways {
            let count = self.count_of(way, args.seconds.0, children).await?;
            figures.push(Figure { way, count, rounds: Vec::new() });
        }
        for _ in 0..args.rounds {
            for figure in &mut figures {
                let elapsed = self.run(figure.way, figure.count, children).await?;
                figure.rounds.push(elapsed.div_f64(figure.count as f64));
            }
            // Whoever was first is last.
            figures.rotate_left(1);
        }
        Ok(figures)
    }

    /// How many operations take as long as is wanted.
    async fn count_of(
        &mut self,
        way: Way,
        wanted: Duration,
        children: &mut Children<Event>,
    ) -> Result<u64, Failure> {
        let mut count = 1;
        loop {
            let elapsed = self.run(way, count, children).await?;
            if elapsed * 4 >= wanted || count >= COUNT_MAX {
                let each = elapsed.as_nanos() / u128::from(count);
                let fit = wanted.as_nanos() / each.max(1);
                return Ok(u64::try_from(fit).unwrap_or(COUNT_MAX).clamp(1, COUNT_MAX));
            }
            count *= 4;
        }
    }

    async fn run(
        &mut self,
        way: Way,
        count: u64,
        children: &mut Children<Event>,
    ) -> Result<Duration, Failure> {
        let step = Step::Run { way, count, warm_up: 1 + count / WARM_UP_SHARE };
        match (way.contender(), &mut self.gloo) {
            (Contender::Gloo, Some(gloo)) => gloo.take(step, children).await,
            (Contender::Gloo, None) => Err(Failure::new("bug in kvpipe: there is no gloo")),
            (Contender::Kvpipe | Contender::Bare, _) => self.kvpipe.take(step, children).await,
        }
    }
}

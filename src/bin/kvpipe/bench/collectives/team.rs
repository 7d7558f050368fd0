//! All ranks of one kind, as the parent sees them: started together, told the same, and waited for.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::time::timeout;

use super::gloo::Gloo;
use super::step::{Event, Step};
use crate::children::Children;
use crate::failure::Failure;

/// The standard inputs of as many processes as there are ranks. They leave the same [`Children`], so one
/// team at a time is told something.
pub(super) struct Team {
    /// What failures call it.
    name: &'static str,
    members: Vec<ChildStdin>,
    patience: Duration,
}

impl Team {
    /// Kvpipe's ranks, who have bare sockets as well.
    pub(super) async fn of_kvpipe(
        children: &mut Children<Event>,
        ranks: u16,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let arguments = |rank: u16, store: SocketAddr| {
            let options = [
                ("--rank", rank.to_string()),
                ("--ranks", ranks.to_string()),
                ("--store", store.to_string()),
                ("--patience", patience.as_secs().to_string()),
            ];
            let mut line: Vec<OsString> = vec!["bench-rank".into()];
            line.extend(options.into_iter().flat_map(|(name, value)| [name.into(), value.into()]));
            line
        };
        Self::start("kvpipe", None, ranks, patience, arguments, children).await
    }

    pub(super) async fn of_gloo(
        children: &mut Children<Event>,
        gloo: &Gloo,
        ranks: u16,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let arguments = |rank, store| Gloo::arguments(rank, ranks, store, patience);
        Self::start("gloo", Some(&gloo.python), ranks, patience, arguments, children).await
    }

    /// Rank 0 says where the others find it; all say when they have joined.
    async fn start(
        name: &'static str,
        program: Option<&Path>,
        ranks: u16,
        patience: Duration,
        arguments: impl Fn(u16, SocketAddr) -> Vec<OsString>,
        children: &mut Children<Event>,
    ) -> Result<Self, Failure> {
        let start = |rank: u16, store, children: &mut Children<Event>| {
            children.start_listening(format!("rank {rank} of {name}"), program, arguments(rank, store))
        };
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut team = Self { name, members: vec![start(0, anywhere, children)?], patience };
        let Event::Store(store) = team.answer(children).await? else {
            return Err(Failure::new(format!("bug in kvpipe: {name} has no store")));
        };
        for rank in 1..ranks {
            team.members.push(start(rank, store, children)?);
        }
        team.all_done(children).await?;
        Ok(team)
    }

    /// Has all ranks do the same; gives the time of the slowest.
    pub(super) async fn take(
        &mut self,
        step: Step,
        children: &mut Children<Event>,
    ) -> Result<Duration, Failure> {
        self.tell(step).await?;
        self.all_done(children).await
    }

    /// Has all ranks end, and takes no notice of it. They need their standard input until they have.
    pub(super) async fn leave(&mut self) -> Result<(), Failure> {
        self.tell(Step::Leave).await
    }

    async fn tell(&mut self, step: Step) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(&step)
            .map_err(|error| Failure::new(format!("bug in kvpipe: a step is not JSON: {error}")))?;
        line.push(b'\n');
        for member in &mut self.members {
            let told = member.write_all(&line).await;
            told.map_err(|error| Failure::io(format!("telling {} what to do", self.name), &error))?;
        }
        Ok(())
    }

    async fn all_done(&self, children: &mut Children<Event>) -> Result<Duration, Failure> {
        let mut slowest = Duration::ZERO;
        for _ in &self.members {
            let Event::Done(seconds) = self.answer(children).await? else {
                return Err(Failure::new(format!("bug in kvpipe: {} has two stores", self.name)));
            };
            let elapsed = Duration::try_from_secs_f64(seconds)
                .map_err(|error| Failure::new(format!("bug in kvpipe: {}'s clock: {error}", self.name)))?;
            slowest = slowest.max(elapsed);
        }
        Ok(slowest)
    }

    async fn answer(&self, children: &mut Children<Event>) -> Result<Event, Failure> {
        let answer = timeout(self.patience, children.next()).await;
        let answer = answer.map_err(|_| {
            Failure::new(format!("{} did not answer within {} s", self.name, self.patience.as_secs()))
        })?;
        answer?.ok_or_else(|| Failure::new(format!("all ranks of {} have left early", self.name)))
    }
}

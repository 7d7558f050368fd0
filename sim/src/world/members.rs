//! Members of process groups that are watched.

use std::collections::BTreeSet;
use std::time::Duration;

use kvpipe::collective::{ProcessGroup, ProcessGroupConfig};
use kvpipe::store::Store;
use kvpipe::wire::text::GroupName;
use kvpipe::{Error, Result};

use super::ends::Stopwatch;
use super::state::State;
use super::{Blame, Rank, Shared, name_of};
use crate::net::SimNet;
use crate::oracle::Violation;

/// What a member does that is the end of its group. The others may learn of it in these ways, and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It calls something else than the others: by [`Error::PeerIncompatible`], which has all of these words.
    Mismatch(Vec<String>),
    /// It calls nothing until the others have given up: by their own deadline, or another's. When it is back
    /// they may be gone.
    Absence,
    /// It drops the future of a call: by [`Error::PeerAborted`].
    Drop,
    /// It leaves before its time: by [`Error::PeerGone`].
    Leave,
}

/// What is known of the process groups of one name.
#[derive(Debug, Default)]
pub(super) struct Watch {
    members: Vec<usize>,
    /// What a member did, who it was, and the run of the group in which it did so.
    deed: Option<(usize, usize, Deed)>,
    /// The members that have formed its first run.
    formed: BTreeSet<usize>,
    /// What may have befallen it when the last of them had: a member that has is in reach of what keeps
    /// another one from it.
    formation: Option<Blame>,
    /// Since when a member of the first run knows that it has failed, or is dead.
    broken: Option<Duration>,
    /// Calls of members of the first run that have not ended: who, what, and since when.
    calls: Vec<(u64, usize, &'static str, Duration)>,
}

/// A member of a watched process group: how its calls end is judged.
#[derive(Debug)]
pub struct Member {
    rank: Rank,
    name: String,
    run: usize,
    group: ProcessGroup<SimNet>,
    timeout: Duration,
}

/// What leaving a group takes at most: its connections are told, and their other ends seen to be closed.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

impl Member {
    /// Forms the group for the so-manieth time. `members` are the ranks of the world, in their order in the
    /// group.
    ///
    /// # Errors
    /// As [`ProcessGroup::from_store`].
    pub(super) async fn join(
        rank: &Rank,
        store: &impl Store,
        name: &str,
        members: &[usize],
        run: usize,
        config: ProcessGroupConfig,
    ) -> Result<Self> {
        let place = members.iter().position(|member| *member == rank.number());
        let place = place.ok_or_else(|| Error::Misuse(format!("{members:?} are without this rank")))?;
        rank.shared().lock().groups.entry(name.into()).or_default().members = members.to_vec();
        let timeout = config.timeout;
        let config = ProcessGroupConfig {
            name: GroupName::new(name)?,
            address: Some(rank.any_port()),
            entropy: rank.entropy(),
            ..config
        };
        rank.note(format_args!("{name} joins, run {run}"));
        let forming = ProcessGroup::from_store(rank.net().clone(), store, place, members.len(), config);
        match rank.waits_within("forming a group", timeout, forming).await {
            Ok(group) => {
                rank.note(format_args!("{name} has formed"));
                rank.happened("a group formed");
                let member = Self { rank: rank.clone(), name: name.into(), run, group, timeout };
                if member.is_first() {
                    let now = rank.now();
                    rank.shared().lock().forms_group(name, rank.number(), now);
                }
                Ok(member)
            }
            Err(error) => {
                rank.note(format_args!("{name} has not formed: {error}"));
                judge(rank, name, None, "forming a group", &error);
                Err(error)
            }
        }
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &ProcessGroup<SimNet> {
        &self.group
    }

    /// Waits for a call of [`group`](Self::group), and judges how it ends.
    ///
    /// # Errors
    /// The call's own.
    pub async fn call<T>(&self, what: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let (rank, was_broken) = (&self.rank, self.group.failure().is_some());
        rank.note(format_args!("{} {what}", self.name));
        let calling = Calling::begin(self, what);
        let clock = Stopwatch::start(rank);
        let result = rank.waits(what, call).await;
        clock.check(what, self.timeout, matches!(result, Err(Error::Timeout { .. })));
        drop(calling);
        rank.shared().lock().operations[usize::from(result.is_ok())] += 1;
        match &result {
            Ok(_) => rank.happened(what),
            Err(error) => self.judge(what, error),
        }
        let says_so = matches!(result, Err(Error::GroupBroken { .. }));
        rank.expect(!was_broken || says_so, || {
            format!("{what} of a group that is broken gave no such error")
        });
        result
    }

    /// Waits for a call that can't be, which must not do anything.
    pub async fn refused<T>(&self, what: &'static str, call: impl Future<Output = Result<T>>) {
        let before = self.group.failure().is_some();
        let result = self.rank.waits(what, call).await;
        let is_refused = matches!(result, Err(Error::Misuse(_)));
        self.rank.expect(is_refused, || format!("{what} with a root that does not exist was not refused"));
        let after = self.group.failure().is_some();
        self.rank.expect(before || !after || self.may_fail(), || {
            format!("{what} was refused, and broke the group")
        });
    }

    /// From now on the other members may be told of what this one does.
    pub fn does(&self, deed: Deed) {
        self.rank.note(format_args!("{} will do wrong: {deed:?}", self.name));
        self.rank.shared().lock().group(&self.name).deed = Some((self.run, self.rank.number(), deed));
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// As [`ProcessGroup::destroy`].
    pub async fn destroy(self) -> Result<()> {
        let Self { rank, name, run, group, .. } = self;
        rank.note(format_args!("{name} leaves"));
        let failed = group.failure().is_some();
        let result = rank.waits_within("leaving a group", LEAVE_WITHIN, group.destroy()).await;
        match &result {
            Ok(()) => rank.expect(!failed, || "a group that had failed was left without a word".into()),
            Err(error) => judge(&rank, &name, Some(run), "leaving a group", error),
        }
        result
    }

    /// Whether no fault has reached the group so far; of its first run.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        let now = self.rank.now();
        let mut state = self.rank.shared().lock();
        let members = state.group(&self.name).members.clone();
        let formation = state.group(&self.name).formation;
        formation == Some(Blame::default())
            && state.causes().of_group(&members, true, now) == Blame::default()
    }

    /// Whether there is a reason for it by now.
    fn may_fail(&self) -> bool {
        let now = self.rank.now();
        let state = &mut *self.rank.shared().lock();
        let gone = Error::PeerAborted { link: kvpipe::Link::new(0, 0), reason: String::new() };
        state.explains_of_group(&self.name, self.rank.number(), Some(self.run), &gone, now)
            || state.group(&self.name).deed.as_ref().is_some_and(|(run, ..)| *run == self.run)
    }

    fn judge(&self, what: &'static str, error: &Error) {
        self.rank.note(format_args!("{} {what} failed: {error}", self.name));
        judge(&self.rank, &self.name, Some(self.run), what, error);
        // One that waited for others in vain has not begun.
        let has_begun = !matches!(error, Error::Timeout { awaited, .. } if awaited.starts_with("earlier"));
        let says_so = self.group.failure().is_some();
        self.rank.expect(!has_begun || says_so, || format!("{what} failed, and the group is not broken"));
        let now = self.rank.now();
        if self.is_first() {
            self.rank.shared().lock().group(&self.name).broken.get_or_insert(now);
        }
    }

    /// Whether it is of the first run for sure: those after a restart are of any.
    fn is_first(&self) -> bool {
        self.run == 0 && self.rank.start() == 0
    }
}

/// An error without a cause is found.
fn judge(rank: &Rank, name: &str, run: Option<usize>, what: &'static str, error: &Error) {
    let said = match error {
        Error::GroupBroken { .. } => "GroupBroken",
        error => name_of(error),
    };
    rank.happened(&format!("group: {said}"));
    let now = rank.now();
    let mut state = rank.shared().lock();
    if !state.explains_of_group(name, rank.number(), run, error, now) {
        state
            .oracle
            .finds(format_args!("{name} at rank {}", rank.number()), Violation::no_cause(what, error));
    }
}

impl State {
    pub(super) fn group(&mut self, name: &str) -> &mut Watch {
        self.groups.entry(name.into()).or_default()
    }

    /// Whether an error of a group has a cause; of one that has not formed if there is no run.
    fn explains_of_group(
        &mut self,
        name: &str,
        who: usize,
        run: Option<usize>,
        error: &Error,
        now: Duration,
    ) -> bool {
        if let Error::GroupBroken { cause } = error {
            return self.explains_of_group(name, who, run, cause, now);
        }
        let Watch { members, deed, formation, .. } = &*self.group(name);
        let (members, formation) = (members.clone(), formation.filter(|_| run == Some(0)));
        let deed = deed.as_ref().filter(|(of, ..)| Some(*of) == run);
        if deed.is_some_and(|(_, by, deed)| deed.explains(error, *by == who)) {
            return true;
        }
        let blame = self.causes().of_group(&members, formation.is_some(), now);
        blame.or(formation.unwrap_or_default()).explains(error)
    }

    fn forms_group(&mut self, name: &str, rank: usize, now: Duration) {
        let watch = self.group(name);
        watch.formed.insert(rank);
        if watch.formed.len() == watch.members.len() {
            let members = watch.members.clone();
            let blame = self.causes().of_group(&members, false, now);
            self.group(name).formation = Some(blame);
        }
    }

    /// A rank is dead, or begins anew.
    pub(super) fn dies_in_groups(&mut self, rank: usize, now: Duration) {
        for watch in self.groups.values_mut().filter(|watch| watch.members.contains(&rank)) {
            watch.broken.get_or_insert(now);
        }
    }

    /// At calls of members that go on for longer than the limit after another member has failed.
    pub(super) fn look_for_ignorant_members(&mut self, now: Duration, limit: Duration) {
        for (name, watch) in &self.groups {
            let Some(broken) = watch.broken else { continue };
            for (_, rank, call, since) in &watch.calls {
                let after = now - broken.max(*since);
                if after > limit {
                    let violation = Violation::FailureUnnoticed { call, after };
                    self.oracle.finds(format_args!("{name} at rank {rank}"), violation);
                }
            }
        }
    }
}

impl Deed {
    /// To the one who does it, or to another member.
    fn explains(&self, error: &Error, is_own: bool) -> bool {
        match (self, error) {
            (Self::Mismatch(words), Error::PeerIncompatible { mismatch, .. }) => {
                words.iter().all(|word| mismatch.contains(word))
            }
            (Self::Absence, Error::Timeout { .. } | Error::PeerAborted { .. }) => true,
            // Who comes back finds that they have left.
            (Self::Absence, Error::PeerGone { .. }) => is_own,
            (Self::Drop, Error::PeerAborted { .. }) => true,
            // Its own next call says so.
            (Self::Drop, Error::Misuse(_)) => is_own,
            (Self::Leave, Error::PeerGone { .. }) => true,
            _ => false,
        }
    }
}

/// A call that has not ended.
struct Calling {
    shared: Shared,
    name: String,
    number: u64,
}

impl Calling {
    fn begin(member: &Member, what: &'static str) -> Self {
        let (rank, now) = (&member.rank, member.rank.now());
        let mut state = rank.shared().lock();
        state.calls += 1;
        let number = state.calls;
        if member.is_first() {
            state.group(&member.name).calls.push((number, rank.number(), what, now));
        }
        drop(state);
        Self { shared: rank.shared().clone(), name: member.name.clone(), number }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        self.shared.lock().group(&self.name).calls.retain(|(number, ..)| *number != self.number);
    }
}

//! What a member of a group does, from forming it to leaving it.

use std::time::Duration;

use kvpipe::collective::ReduceOp;
use kvpipe::{Result, Tensor};

use super::call::Call;
use super::{Collectives, Group, Mistake, Wrong, reference};
use crate::draws::Draws;
use crate::workload::program::dawdle;
use crate::world::{Deed, Member, Rank};

/// One thing after the other.
#[derive(Clone, Debug)]
enum Step {
    Call(Call),
    /// A call in the place of another one.
    Instead(Deed, Call),
    /// Until the others have given up.
    Wait,
    /// A call that is dropped after that time.
    Drop(Call, Duration),
    Leave,
}

/// A member in the middle of its steps.
struct Run<'a> {
    member: &'a Member,
    rank: &'a Rank,
    draws: Draws,
}

/// What became of the steps of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// At the call of this number.
    Failed(usize),
    Left,
}

/// Looks at a group that is to fail so often.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// By how much the members of a group may be apart, about.
const BEHIND_AT_MOST: Duration = Duration::from_secs(1);

/// Once in so many calls one comes before it that can't be.
const REFUSED_ONE_IN: u64 = 24;

/// Once in so many calls it does not wait for the one before.
const TOGETHER_ONE_IN: u64 = 6;

impl Group {
    /// Forms the group and computes; and again, if it has failed and that is planned.
    pub(super) async fn take_part(&self, plan: &Collectives, rank: &Rank) -> Result<()> {
        let calls = self.calls(plan.items);
        for run in 0..=plan.reforms {
            if run > 0 {
                rank.happened("a group is formed again");
            }
            let store = rank.store().await?;
            let joined = rank.join(&store, &self.name, &self.members, run, plan.config()?).await;
            drop(store);
            // Why not, is judged there.
            let Ok(member) = joined else { continue };
            let mistake_at = if plan.mistakes && run == 0 { self.mistake_at(&calls) } else { None };
            let draws = rank.draws().fork(&format!(
                "{} of rank {}, start {}, run {run}",
                self.name,
                rank.number(),
                rank.start()
            ));
            if !self.compute(rank, member, &calls, mistake_at, draws).await {
                break;
            }
        }
        Ok(())
    }

    /// The calls of a run, with a barrier at the end.
    fn calls(&self, items: usize) -> Vec<Call> {
        let last = Call::barrier(self.members.len());
        self.calls.iter().take(items).cloned().chain([last]).collect()
    }

    /// Before which call it is: one of all members, and not the last, so that all must learn of it.
    fn mistake_at(&self, calls: &[Call]) -> Option<usize> {
        let all: Vec<_> = (0..calls.len() - 1).filter(|at| calls[*at].is_everybodys()).collect();
        let at = *all.get(self.mistake.at % all.len().max(1))?;
        (self.members.len() > 1).then_some(at)
    }

    /// True if it has failed.
    async fn compute(
        &self,
        rank: &Rank,
        member: Member,
        calls: &[Call],
        mistake_at: Option<usize>,
        draws: Draws,
    ) -> bool {
        let own = member.group().rank();
        let steps = self.steps(own, calls, mistake_at);
        let run = Run { member: &member, rank, draws };
        let outcome = run.take(&steps).await;
        if let Some(at) = mistake_at
            && member.is_out_of_reach()
        {
            self.check(rank, outcome, calls, at);
        }
        let is_silent = matches!(self.mistake.what, Wrong::Leave { says_so: false });
        if outcome == Outcome::Left && is_silent {
            drop(member);
            return true;
        }
        if let Outcome::Failed(_) = outcome {
            // It says so at the next call, too.
            let _ = member.call("barrier", member.group().barrier()).await;
        }
        let left = member.destroy().await;
        left.is_err() || outcome != Outcome::Done
    }

    /// What a member does, by the number of the call.
    fn steps(&self, own: usize, calls: &[Call], mistake_at: Option<usize>) -> Vec<(usize, Step)> {
        let mut steps = Vec::new();
        for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.is_of(own)) {
            if mistake_at != Some(at) || self.mistake.member != own {
                steps.push((at, Step::Call(call.clone())));
                continue;
            }
            let next =
                calls[at + 1..].iter().find(|next| next.is_everybodys() && next.words() != call.words());
            let number = calls[..at].iter().filter(|before| before.is_everybodys()).count();
            let instead = |other: &Call| {
                let words = [call.words(), other.words(), vec![format!("as operation {number}")]];
                Step::Instead(Deed::Mismatch(words.concat()), other.clone())
            };
            match (&self.mistake.what, next) {
                (Wrong::Absence, _) => steps.extend([(at, Step::Wait), (at, Step::Call(call.clone()))]),
                (Wrong::Drop(after), _) => steps.push((at, Step::Drop(call.clone(), *after))),
                (Wrong::Leave { .. }, _) => steps.push((at, Step::Leave)),
                (Wrong::Order, Some(next)) => steps.push((at, instead(next))),
                (Wrong::Other | Wrong::Order, _) => {
                    steps.push((at, instead(&call.mistaken(&self.draws))));
                }
            }
        }
        steps
    }

    /// What must become of a run in which somebody makes a mistake at a call: nobody is through with it, and
    /// who has begun a call knows that all have begun the one before.
    fn check(&self, rank: &Rank, outcome: Outcome, calls: &[Call], at: usize) {
        let before = (0..at).rev().find(|before| calls[*before].is_everybodys()).unwrap_or(0);
        let Mistake { member, what, .. } = &self.mistake;
        match (outcome, what) {
            (Outcome::Failed(failed), Wrong::Other | Wrong::Order | Wrong::Absence) => {
                rank.expect((before..=at).contains(&failed), || {
                    format!("call {failed} failed of {what} of member {member} at call {at}")
                });
            }
            (Outcome::Failed(failed), Wrong::Drop(_) | Wrong::Leave { .. }) => {
                rank.expect(failed >= before, || {
                    format!("call {failed} failed of {what} of member {member} at call {at}")
                });
            }
            // The call was over when it was dropped.
            (Outcome::Done, Wrong::Drop(_)) | (Outcome::Left, _) => {}
            (Outcome::Done, _) => {
                rank.expect(false, || format!("nobody told it of {what} of member {member} at call {at}"));
            }
        }
    }
}

impl Run<'_> {
    async fn take(&self, steps: &[(usize, Step)]) -> Outcome {
        let mut left = steps;
        loop {
            dawdle(&self.draws).await;
            let (at, result) = match left {
                [] => return Outcome::Done,
                [(_, Step::Leave), ..] => {
                    self.does(Deed::Leave, "mistake: leaving early");
                    return Outcome::Left;
                }
                [(at, Step::Call(one)), (next, Step::Call(other)), rest @ ..]
                    if self.draws.one_in(TOGETHER_ONE_IN) =>
                {
                    left = rest;
                    match tokio::join!(self.call(one), self.call(other)) {
                        (Err(error), _) => (*at, Err(error)),
                        (Ok(()), result) => (*next, result),
                    }
                }
                [(at, step), rest @ ..] => {
                    left = rest;
                    (*at, self.step(step).await)
                }
            };
            if result.is_err() {
                return Outcome::Failed(at);
            }
        }
    }

    async fn step(&self, step: &Step) -> Result<()> {
        match step {
            Step::Call(call) => {
                if self.draws.one_in(REFUSED_ONE_IN) {
                    self.refuse().await?;
                }
                self.call(call).await
            }
            Step::Instead(deed, call) => {
                self.does(deed.clone(), "mistake: another call");
                let result =
                    self.member.call(call.kind.name(), call.make(self.member.group(), &self.draws)).await;
                result.map(drop)
            }
            Step::Wait => {
                self.does(Deed::Absence, "mistake: absence");
                let failed = async {
                    while self.member.group().failure().is_none() {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                };
                // Word of it may come behind a message that is not yet due here.
                let limit = self.member.group().timeout() + BEHIND_AT_MOST;
                let _ = self.rank.waits("the others to give up", tokio::time::timeout(limit, failed)).await;
                Ok(())
            }
            Step::Drop(call, after) => {
                self.does(Deed::Drop, "mistake: a dropped call");
                let call = self.call(call);
                if let Ok(result) = tokio::time::timeout(*after, call).await {
                    return result;
                }
                let is_broken = self.member.group().failure().is_some();
                self.rank.expect(is_broken, || "a call was dropped, and the group is not broken".into());
                Ok(())
            }
            Step::Leave => Ok(()),
        }
    }

    /// Makes a call, and compares what it gives.
    async fn call(&self, call: &Call) -> Result<()> {
        let group = self.member.group();
        let got = self.member.call(call.kind.name(), call.make(group, &self.draws)).await?;
        let got = got.map(|tensor| tensor.bytes().cloned()).transpose()?;
        let expected = reference::output(call, group.rank());
        self.rank.expect(got.as_deref() == expected.as_deref(), || {
            let [got, expected] = [got.as_deref(), expected.as_deref()].map(Option::unwrap_or_default);
            let at = got.iter().zip(expected).position(|(one, other)| one != other);
            let (words, lengths) = (call.words().join(" "), [got.len(), expected.len()]);
            format!("{words} gave another result from byte {at:?} on, lengths {lengths:?}")
        });
        Ok(())
    }

    /// A call that can't be: of a root that there is not.
    async fn refuse(&self) -> Result<()> {
        let (group, tensor) = (self.member.group(), Tensor::from_slice([1], &[1_u8])?);
        self.member.refused("reduce", group.reduce(&tensor, ReduceOp::Sum, group.size())).await;
        self.rank.happened("a call is refused");
        Ok(())
    }

    fn does(&self, deed: Deed, name: &str) {
        self.rank.happened(name);
        self.member.does(deed);
    }
}

//! How long programs take on a network where only bytes cost time: every rank can send to one other and
//! receive from one other at once.

use std::collections::VecDeque;

use crate::collective::program::{Program, Step};

#[derive(Clone, Default)]
struct Rank {
    /// When each number of steps is done.
    done: Vec<usize>,
    sent: usize,
    /// From when on it can send, and receive.
    out_free: usize,
    in_free: usize,
    /// When messages arrive, from each rank.
    arrivals: Vec<VecDeque<usize>>,
}

/// When the last rank is done, in the time that one byte takes.
pub(super) fn duration(programs: &[Program]) -> usize {
    let idle = Rank { done: vec![0], arrivals: vec![VecDeque::new(); programs.len()], ..Rank::default() };
    let mut ranks = vec![idle; programs.len()];
    loop {
        for (rank, program) in ranks.iter_mut().zip(programs) {
            rank.proceed(program);
        }
        let start = |from: usize| {
            let send = programs[from].sends.get(ranks[from].sent)?;
            let ready = *ranks[from].done.get(send.after)?;
            Some((ready.max(ranks[from].out_free).max(ranks[send.rank].in_free), from))
        };
        let Some((start, from)) = (0..ranks.len()).filter_map(start).min() else { break };
        let send = programs[from].sends[ranks[from].sent];
        let end = start + send.from.bytes;
        ranks[from].sent += 1;
        ranks[from].out_free = end;
        ranks[send.rank].in_free = end;
        ranks[send.rank].arrivals[from].push_back(end);
    }
    for (rank, program) in ranks.iter().zip(programs) {
        assert_eq!(rank.done.len(), program.steps.len() + 1, "steps that are done");
    }
    ranks.iter().map(|rank| rank.done[rank.done.len() - 1]).max().unwrap()
}

impl Rank {
    fn proceed(&mut self, program: &Program) {
        while let Some(step) = program.steps.get(self.done.len() - 1) {
            let last = self.done[self.done.len() - 1];
            let next = match step {
                Step::Compute(_) => last,
                Step::Receive { rank, .. } => match self.arrivals[*rank].pop_front() {
                    Some(arrival) => last.max(arrival),
                    None => return,
                },
            };
            self.done.push(next);
        }
    }
}

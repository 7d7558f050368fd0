//! All ranks' programs, run in one memory, in an order and with delays that a seed gives.

use std::collections::VecDeque;

use crate::collective::memory::{Input, Memory};
use crate::collective::program::{Program, Span, Step};
use crate::collective::random::Random;

/// What memory holds before anybody has written it.
const POISON: u8 = 0xA5;

/// One rank's part: what it runs, and the caller's memory.
pub(super) struct Part {
    pub(super) program: Program,
    /// None: it is in the output, from this byte on.
    pub(super) input: Result<Vec<u8>, usize>,
    pub(super) output: Vec<u8>,
}

impl Part {
    /// Out of place.
    pub(super) fn apart(program: Program, input: Vec<u8>, output_bytes: usize) -> Self {
        Self { program, input: Ok(input), output: vec![POISON; output_bytes] }
    }

    /// In place.
    pub(super) fn within(program: Program, input: &[u8], at: usize, output_bytes: usize) -> Self {
        let mut output = vec![POISON; output_bytes];
        output[at..][..input.len()].copy_from_slice(input);
        Self { program, input: Err(at), output }
    }
}

/// How messages travel.
#[derive(Clone, Copy, Debug)]
struct Wire {
    /// A rank's next message begins only once the last was taken.
    rendezvous: bool,
    /// A message's bytes are read only as they are taken.
    lazy: bool,
}

struct Rank {
    part: Part,
    scratch: Vec<u8>,
    /// The steps that are done.
    done: usize,
    /// Whether half of what the current step receives is there.
    half: bool,
    /// The sends that have begun.
    begun: usize,
    /// The sends that were taken.
    taken: usize,
    /// Whom it has heard of, as bits, after each number of steps.
    heard: Vec<u64>,
}

struct Message {
    from: Span,
    /// Its halves, once they were read.
    halves: [Option<Vec<u8>>; 2],
    heard: u64,
}

/// The ranks and what is between them.
struct World {
    wire: Wire,
    random: Random,
    ranks: Vec<Rank>,
    /// From each to each.
    links: Vec<Vec<VecDeque<Message>>>,
}

/// What can happen next.
#[derive(Clone, Copy)]
enum Event {
    Compute(usize),
    Begin(usize),
    Read { from: usize, to: usize, position: usize },
    Take { from: usize, to: usize },
}

/// Runs all to the end, and gives the outputs, and whom each rank has heard of, as bits. A deadlock, a
/// message of other bytes than expected, and one that nobody takes are failures.
pub(super) fn run(parts: Vec<Part>, seed: u64) -> (Vec<Vec<u8>>, Vec<u64>) {
    let mut random = Random(seed);
    let wire = Wire { rendezvous: random.coin(), lazy: random.coin() };
    let size = parts.len();
    let rank = |(rank, part): (usize, Part)| Rank {
        scratch: vec![POISON; part.program.scratch_bytes],
        part,
        done: 0,
        half: false,
        begun: 0,
        taken: 0,
        heard: vec![1 << rank],
    };
    let links = (0..size).map(|_| (0..size).map(|_| VecDeque::new()).collect()).collect();
    let mut world = World { wire, random, ranks: parts.into_iter().enumerate().map(rank).collect(), links };
    world.run();
    let (outputs, heard) =
        world.ranks.into_iter().map(|rank| (rank.part.output, *rank.heard.last().unwrap())).unzip();
    (outputs, heard)
}

impl World {
    fn run(&mut self) {
        // Some ranks are slower than others; which ones changes.
        let mut patience: Vec<usize> = vec![0; self.ranks.len()];
        loop {
            let events = self.events();
            if events.is_empty() {
                break;
            }
            if self.random.below(16) == 0 {
                let slow = self.random.below(self.ranks.len());
                patience[slow] = self.random.below(64);
            }
            let event = events[self.random.below(events.len())];
            let actor = match event {
                Event::Compute(rank) | Event::Begin(rank) => rank,
                Event::Read { from, .. } => from,
                Event::Take { to, .. } => to,
            };
            if patience[actor] > 0 {
                patience[actor] -= 1;
                continue;
            }
            self.happen(event);
        }
        for (number, rank) in self.ranks.iter().enumerate() {
            let (steps, sends) = (&rank.part.program.steps, &rank.part.program.sends);
            assert!(
                rank.done == steps.len() && rank.taken == sends.len(),
                "deadlock, {:?}: rank {number} waits at step {} {:?} and send {} {:?}",
                self.wire,
                rank.done,
                steps.get(rank.done),
                rank.taken,
                sends.get(rank.taken)
            );
        }
    }

    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (number, rank) in self.ranks.iter().enumerate() {
            match rank.part.program.steps.get(rank.done) {
                Some(Step::Compute(_)) => events.push(Event::Compute(number)),
                Some(Step::Receive { rank: from, .. }) if !self.links[*from][number].is_empty() => {
                    events.push(Event::Take { from: *from, to: number });
                }
                _ => {}
            }
            let next = rank.part.program.sends.get(rank.begun);
            let free = !self.wire.rendezvous || rank.taken == rank.begun;
            if free && next.is_some_and(|send| send.after <= rank.done) {
                events.push(Event::Begin(number));
            }
        }
        if !self.wire.lazy {
            for (from, links) in self.links.iter().enumerate() {
                for (to, link) in links.iter().enumerate() {
                    let unread = link.iter().position(|message| message.halves.contains(&None));
                    events.extend(unread.map(|position| Event::Read { from, to, position }));
                }
            }
        }
        events
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Compute(rank) => {
                let rank = &mut self.ranks[rank];
                let Step::Compute(compute) = rank.part.program.steps[rank.done].clone() else {
                    unreachable!()
                };
                rank.memory().compute(&compute);
                rank.done += 1;
                rank.heard.push(rank.heard[rank.done - 1]);
            }
            Event::Begin(number) => {
                let rank = &mut self.ranks[number];
                let send = rank.part.program.sends[rank.begun];
                assert_ne!(send.rank, number, "a rank sends to itself");
                rank.begun += 1;
                let message =
                    Message { from: send.from, halves: [None, None], heard: rank.heard[send.after] };
                self.links[number][send.rank].push_back(message);
            }
            Event::Read { from, to, position } => {
                let half = usize::from(self.links[from][to][position].halves[0].is_some());
                self.read(from, to, position, half);
            }
            Event::Take { from, to } => self.take(from, to),
        }
    }

    /// Reads half a message from its sender's memory, if that was not done.
    fn read(&mut self, from: usize, to: usize, position: usize, half: usize) {
        let message = &mut self.links[from][to][position];
        if message.halves[half].is_none() {
            let memory = self.ranks[from].memory();
            let bytes = memory.read(message.from);
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            message.halves[half] = Some(if half == 0 { head } else { tail }.to_vec());
        }
    }

    fn take(&mut self, from: usize, to: usize) {
        let Step::Receive { into, .. } = self.ranks[to].part.program.steps[self.ranks[to].done] else {
            unreachable!()
        };
        let half = usize::from(self.ranks[to].half);
        self.read(from, to, 0, half);
        let message = &self.links[from][to][0];
        assert_eq!(message.from.bytes, into.bytes, "the message from rank {from} that rank {to} gets");
        let middle = into.bytes / 2;
        let range = if half == 0 { 0..middle } else { middle..into.bytes };
        let bytes = message.halves[half].clone().unwrap();
        let mut memory = self.ranks[to].memory();
        memory.write(into)[range].copy_from_slice(&bytes);
        self.ranks[to].half = half == 0;
        if half == 1 {
            let heard = self.links[from][to].pop_front().unwrap().heard;
            self.ranks[from].taken += 1;
            let rank = &mut self.ranks[to];
            rank.done += 1;
            rank.heard.push(heard | rank.heard[rank.done - 1]);
        }
    }
}

impl Rank {
    fn memory(&mut self) -> Memory<'_> {
        let input = match &self.part.input {
            Ok(input) => Input::Apart(input),
            Err(at) => Input::Within { at: *at },
        };
        Memory::new(input, &mut self.part.output, &mut self.scratch)
    }
}

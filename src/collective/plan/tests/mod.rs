//! Every operation on every rank, in any order of events, against the plainest reference.

mod cost;
mod world;

use proptest::prelude::*;

use self::world::{Part, run};
use super::{Planner, Tuning};
use crate::collective::ReduceOp;
use crate::collective::program::{Program, Step};
use crate::collective::random::Random;
use crate::collective::reduction::Reduction;
use crate::collective::reference::{DTYPES, Data, OPS, elements, one_nan, reduced};
use crate::tensor::DType;

/// A group, and what its ranks do in one operation.
#[derive(Clone, Debug)]
struct Case {
    size: usize,
    tuning: Tuning,
    root: usize,
    /// Ranks that work in place.
    in_place: u8,
    seed: u64,
}

/// Small enough for a few elements to make many chunks, and for every algorithm to be chosen.
fn tunings() -> impl Strategy<Value = Tuning> {
    let threshold = || prop_oneof![Just(0), 1..100_usize, Just(usize::MAX)];
    (1..40_usize, 1..4_usize, threshold(), threshold(), threshold(), 0..9_usize).prop_map(
        |(chunk_bytes, chunks_ahead_max, gathered, reduced, rooted, pairwise_ranks_max)| Tuning {
            chunk_bytes,
            chunks_ahead_max,
            gathered_small_bytes_max: gathered,
            reduced_small_bytes_max: reduced,
            rooted_small_bytes_max: rooted,
            pairwise_ranks_max,
        },
    )
}

fn cases() -> impl Strategy<Value = Case> {
    (1..=8_usize, tunings(), any::<usize>(), any::<u8>(), any::<u64>()).prop_map(
        |(size, tuning, root, in_place, seed)| Case { size, tuning, root: root % size, in_place, seed },
    )
}

/// A dtype and an operation that it has.
fn reductions() -> impl Strategy<Value = (DType, ReduceOp)> {
    let all = DTYPES.into_iter().flat_map(|dtype| OPS.map(|op| (dtype, op)));
    let possible: Vec<_> = all.filter(|(dtype, op)| Reduction::new(*dtype, *op, 1).is_ok()).collect();
    prop::sample::select(possible)
}

impl Case {
    fn planner(&self, rank: usize) -> Planner {
        Planner::new(rank, self.size, self.tuning)
    }

    fn in_place(&self, rank: usize) -> bool {
        self.in_place.checked_shr(rank as u32).unwrap_or(0) & 1 == 1
    }

    /// The outputs. Every rank has heard of all.
    fn run(&self, part: impl FnMut(usize) -> Part) -> Vec<Vec<u8>> {
        let (outputs, heard) = run((0..self.size).map(part).collect(), self.seed);
        assert_eq!(heard, vec![(1 << self.size) - 1; self.size], "who has heard of whom");
        outputs
    }

    /// Every rank's input.
    fn inputs(
        &self,
        dtype: DType,
        op: ReduceOp,
        data: Data,
        counts: impl Fn(usize) -> usize,
    ) -> Vec<Vec<u8>> {
        let mut random = Random(!self.seed);
        (0..self.size).map(|rank| elements(dtype, op, data, counts(rank), &mut random)).collect()
    }

    /// Every rank's input, if nobody computes with it.
    fn bytes(&self, counts: impl Fn(usize) -> usize) -> Vec<Vec<u8>> {
        self.inputs(DType::UInt8, ReduceOp::Sum, Data::Bits, counts)
    }

    /// In place the input is the output.
    fn same_place(&self, rank: usize, program: Program, input: &[u8]) -> Part {
        match self.in_place(rank) {
            true => Part::within(program, input, 0, input.len()),
            false => Part::apart(program, input.to_vec(), input.len()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_all_reduce_gives_every_rank_the_reduction(
        case in cases(), (dtype, op) in reductions(), count in 0..60_usize,
    ) {
        let reduction = Reduction::new(dtype, op, case.size).unwrap();
        let inputs = case.inputs(dtype, op, Data::Exact, |_| count);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).all_reduce(count, &reduction, case.in_place(rank));
            case.same_place(rank, program, &inputs[rank])
        });
        prop_assert_eq!(outputs, vec![reduced(dtype, op, &inputs); case.size]);
    }

    #[test]
    fn an_all_reduce_gives_the_same_bits_to_every_rank_and_in_every_run(
        case in cases(), (dtype, op) in reductions(), count in 0..60_usize, other_seed in any::<u64>(),
    ) {
        let reduction = Reduction::new(dtype, op, case.size).unwrap();
        let inputs = case.inputs(dtype, op, Data::Bits, |_| count);
        let run = |case: &Case| case.run(|rank| {
            let program = case.planner(rank).all_reduce(count, &reduction, case.in_place(rank));
            case.same_place(rank, program, &inputs[rank])
        });
        let outputs = run(&case);
        prop_assert!(outputs.iter().all(|output| *output == outputs[0]));
        let again = run(&Case { seed: other_seed, ..case.clone() });
        prop_assert!(outputs == again);
        // Which of several NaNs an addition gives may depend on whether it is done in place.
        let elsewhere = run(&Case { in_place: !case.in_place, ..case });
        prop_assert_eq!(one_nan(dtype, &outputs[0]), one_nan(dtype, &elsewhere[0]));
    }

    #[test]
    fn pairwise_the_order_is_that_of_ranks_and_halves_are_rounded_once(
        case in cases(), (dtype, op) in reductions(), count in 0..60_usize, rooted in any::<bool>(),
    ) {
        let pairwise = |tuning| Tuning {
            reduced_small_bytes_max: 0,
            rooted_small_bytes_max: 0,
            pairwise_ranks_max: 8,
            ..tuning
        };
        let case = Case { tuning: pairwise(case.tuning), ..case };
        let reduction = Reduction::new(dtype, op, case.size).unwrap();
        let rooted = rooted && reduction.widens();
        let inputs = case.inputs(dtype, op, Data::Uneven, |_| count);
        let outputs = case.run(|rank| {
            let (planner, in_place) = (case.planner(rank), case.in_place(rank));
            let program = match rooted {
                true => planner.reduce(count, &reduction, case.root, in_place),
                false => planner.all_reduce(count, &reduction, in_place),
            };
            case.same_place(rank, program, &inputs[rank])
        });
        let rank = if rooted { case.root } else { case.size - 1 };
        prop_assert_eq!(one_nan(dtype, &outputs[rank]), one_nan(dtype, &reduced(dtype, op, &inputs)));
    }

    #[test]
    fn a_reduce_gives_the_root_the_reduction_and_changes_no_input(
        case in cases(), (dtype, op) in reductions(), count in 0..60_usize,
    ) {
        let reduction = Reduction::new(dtype, op, case.size).unwrap();
        let inputs = case.inputs(dtype, op, Data::Exact, |_| count);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).reduce(count, &reduction, case.root, case.in_place(rank));
            match rank == case.root || case.in_place(rank) {
                true => case.same_place(rank, program, &inputs[rank]),
                false => Part::apart(program, inputs[rank].clone(), 0),
            }
        });
        for (rank, output) in outputs.into_iter().enumerate() {
            match case.in_place(rank) {
                _ if rank == case.root => prop_assert_eq!(output, reduced(dtype, op, &inputs)),
                true => prop_assert_eq!(&output, &inputs[rank]),
                false => prop_assert!(output.is_empty()),
            }
        }
    }

    #[test]
    fn a_reduce_scatter_gives_every_rank_its_block(
        case in cases(),
        (dtype, op) in reductions(),
        counts in prop::collection::vec(0..20_usize, 8),
    ) {
        let reduction = Reduction::new(dtype, op, case.size).unwrap();
        let counts = &counts[..case.size];
        let total: usize = counts.iter().sum();
        let inputs = case.inputs(dtype, op, Data::Exact, |_| total);
        let block = |rank: usize| {
            let at: usize = counts[..rank].iter().sum();
            at * dtype.item_bytes()..(at + counts[rank]) * dtype.item_bytes()
        };
        let outputs = case.run(|rank| {
            let in_place = case.in_place(rank);
            let program = case.planner(rank).reduce_scatterv(counts, &reduction, in_place);
            match in_place {
                true => Part::within(program, &inputs[rank], 0, inputs[rank].len()),
                false => Part::apart(program, inputs[rank].clone(), block(rank).len()),
            }
        });
        let expected = reduced(dtype, op, &inputs);
        for (rank, output) in outputs.iter().enumerate() {
            let own = if case.in_place(rank) { &output[block(rank)] } else { &output[..] };
            prop_assert_eq!(own, &expected[block(rank)], "rank {}", rank);
        }
    }

    #[test]
    fn a_broadcast_gives_every_rank_the_roots_bytes(case in cases(), bytes in 0..200_usize) {
        let inputs = case.bytes(|_| bytes);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).broadcast(bytes, case.root, case.in_place(rank));
            match rank == case.root {
                true => case.same_place(rank, program, &inputs[rank]),
                false => Part::apart(program, Vec::new(), bytes),
            }
        });
        prop_assert_eq!(outputs, vec![inputs[case.root].clone(); case.size]);
    }

    #[test]
    fn an_all_gather_gives_every_rank_all_blocks(
        case in cases(), bytes in prop::collection::vec(0..40_usize, 8),
    ) {
        let bytes = &bytes[..case.size];
        let inputs = case.bytes(|rank| bytes[rank]);
        let outputs = case.run(|rank| {
            let in_place = case.in_place(rank);
            let program = case.planner(rank).all_gatherv(bytes, in_place);
            let (at, total) = (bytes[..rank].iter().sum(), bytes.iter().sum());
            match in_place {
                true => Part::within(program, &inputs[rank], at, total),
                false => Part::apart(program, inputs[rank].clone(), total),
            }
        });
        prop_assert_eq!(outputs, vec![inputs.concat(); case.size]);
    }

    #[test]
    fn a_gather_gives_the_root_all_blocks(case in cases(), bytes in 0..40_usize) {
        let inputs = case.bytes(|_| bytes);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).gather(bytes, case.root);
            Part::apart(program, inputs[rank].clone(), if rank == case.root { bytes * case.size } else { 0 })
        });
        prop_assert_eq!(&outputs[case.root], &inputs.concat());
    }

    #[test]
    fn a_scatter_gives_every_rank_its_block(case in cases(), bytes in 0..40_usize) {
        let inputs = case.bytes(|_| bytes);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).scatter(bytes, case.root);
            Part::apart(program, if rank == case.root { inputs.concat() } else { Vec::new() }, bytes)
        });
        prop_assert_eq!(outputs, inputs);
    }

    #[test]
    fn an_all_to_all_gives_every_rank_its_block_of_each(case in cases(), bytes in 0..40_usize) {
        let inputs = case.bytes(|_| bytes * case.size);
        let outputs = case.run(|rank| {
            Part::apart(case.planner(rank).all_to_all(bytes), inputs[rank].clone(), bytes * case.size)
        });
        for (rank, output) in outputs.into_iter().enumerate() {
            let blocks: Vec<_> = inputs.iter().map(|input| &input[rank * bytes..][..bytes]).collect();
            prop_assert_eq!(output, blocks.concat());
        }
    }

    #[test]
    fn a_barrier_ends_once_all_have_begun(case in cases()) {
        case.run(|rank| Part::apart(case.planner(rank).barrier(), Vec::new(), 0));
    }

    #[test]
    fn what_is_sent_is_received_and_answered(
        seed in any::<u64>(), bytes in 0..40_usize, swapped in any::<bool>(),
    ) {
        let (sender, receiver) = if swapped { (1, 0) } else { (0, 1) };
        let tuning = Tuning::default();
        let input = elements(DType::UInt8, ReduceOp::Sum, Data::Bits, bytes, &mut Random(!seed));
        let answering = Planner::new(receiver, 2, tuning).recv(sender, bytes);
        prop_assert_eq!(answering.sends[0].after, answering.steps.len(), "once all is there");
        let mut parts = vec![
            Part::apart(Planner::new(sender, 2, tuning).send(receiver, bytes), input.clone(), 0),
            Part::apart(answering, Vec::new(), bytes),
        ];
        if swapped {
            parts.swap(0, 1);
        }
        let (outputs, heard) = run(parts, seed);
        prop_assert_eq!(&outputs[receiver], &input);
        prop_assert_eq!(heard, [3, 3]);
    }
}

/// With every algorithm's real sizes: several chunks, and a last one that is not full.
#[test]
fn large_payloads_are_reduced_by_default() {
    for (dtype, size, count) in
        [(DType::Float32, 2, 150_001), (DType::BFloat16, 3, 400_001), (DType::Int32, 9, 50_000)]
    {
        let op = ReduceOp::Sum;
        let case = Case { size, tuning: Tuning::default(), root: 0, in_place: 0b101, seed: 7 };
        let reduction = Reduction::new(dtype, op, size).unwrap();
        let inputs = case.inputs(dtype, op, Data::Exact, |_| count);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).all_reduce(count, &reduction, case.in_place(rank));
            case.same_place(rank, program, &inputs[rank])
        });
        assert!(outputs.iter().all(|output| *output == reduced(dtype, op, &inputs)), "{dtype}, {size} ranks");
    }
}

/// Powers of two, and what is beside them.
#[test]
fn the_rounds_of_small_operations_are_as_few_as_there_can_be() {
    let tuning = Tuning::default();
    for (size, rounds) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4), (17, 5), (33, 6)]
    {
        for rank in 0..size {
            let planner = Planner::new(rank, size, tuning);
            let reduction = Reduction::new(DType::BFloat16, ReduceOp::Sum, size).unwrap();
            let sends = |program: Program| program.sends.len();
            assert_eq!(sends(planner.barrier()), rounds);
            assert_eq!(sends(planner.broadcast(100, size / 2, false)), rounds);
            assert_eq!(sends(planner.reduce(100, &reduction, size / 2, false)), rounds);
            if size.is_power_of_two() {
                assert_eq!(sends(planner.all_reduce(100, &reduction, false)), rounds);
            }
        }
    }
}

/// The β of the tables, to the byte: nothing waits that could move.
#[test]
fn large_operations_take_as_long_as_their_tables_say() {
    const CHUNK: usize = 64;
    const CHUNKS: usize = 20;
    let tuning = |pairwise_ranks_max| Tuning {
        chunk_bytes: CHUNK,
        chunks_ahead_max: usize::MAX,
        gathered_small_bytes_max: 0,
        reduced_small_bytes_max: 0,
        rooted_small_bytes_max: 0,
        pairwise_ranks_max,
    };
    for size in 2..9 {
        let block = CHUNKS * CHUNK;
        let (whole, root) = (size * block, size - 1);
        let reduction = |dtype| Reduction::new(dtype, ReduceOp::Sum, size).unwrap();
        let (float, half) = (reduction(DType::Float32), reduction(DType::BFloat16));
        let taken = |pairwise_ranks_max, program: &dyn Fn(Planner) -> Program| {
            let planner = |rank| Planner::new(rank, size, tuning(pairwise_ranks_max));
            let programs: Vec<_> = (0..size).map(|rank| program(planner(rank))).collect();
            cost::duration(&programs)
        };
        let others = (size - 1) * block;
        let chain = whole + (size - 2) * CHUNK;
        for (name, expected, taken) in [
            ("all-gather", others, taken(0, &|rank| rank.all_gatherv(&vec![block; size], true))),
            (
                "reduce-scatter, ring",
                others,
                taken(0, &|rank| rank.reduce_scatterv(&vec![block / 4; size], &float, true)),
            ),
            (
                "reduce-scatter, pairwise",
                others,
                taken(8, &|rank| rank.reduce_scatterv(&vec![block / 4; size], &float, true)),
            ),
            ("all-reduce, ring", 2 * others, taken(0, &|rank| rank.all_reduce(whole / 4, &float, true))),
            ("all-reduce, pairwise", 2 * others, taken(8, &|rank| rank.all_reduce(whole / 4, &float, true))),
            ("all-to-all", others, taken(0, &|rank| rank.all_to_all(block))),
            ("gather", others, taken(0, &|rank| rank.gather(block, root))),
            ("scatter", others, taken(0, &|rank| rank.scatter(block, root))),
            ("broadcast", chain, taken(0, &|rank| rank.broadcast(whole, root, true))),
            ("reduce", chain, taken(0, &|rank| rank.reduce(whole / 4, &float, root, true))),
            ("reduce, halves", 2 * others, taken(0, &|rank| rank.reduce(whole / 2, &half, root, true))),
        ] {
            assert_eq!(taken, expected, "{name} of {size} ranks");
        }
    }
}

/// What is further ahead waits in sockets, and costs half of the speed.
#[test]
fn no_rank_sends_more_chunks_ahead_than_are_allowed() {
    let tuning = Tuning { chunk_bytes: 8, reduced_small_bytes_max: 0, ..Tuning::default() };
    let tuning = Tuning { gathered_small_bytes_max: 0, ..tuning };
    let reduction = Reduction::new(DType::Float32, ReduceOp::Sum, 2).unwrap();
    for chunks_ahead_max in 1..4 {
        let planner = Planner::new(1, 2, Tuning { chunks_ahead_max, ..tuning });
        for program in [planner.all_reduce(100, &reduction, true), planner.all_gatherv(&[100; 2], false)] {
            assert!(program.sends.len() > 10);
            let mut after = 0;
            for (number, send) in program.sends.iter().enumerate() {
                // Each waits for those before it as well.
                after = after.max(send.after);
                let received = program.steps[..after].iter();
                let received = received.filter(|step| matches!(step, Step::Receive { .. })).count();
                // In each of the two phases of an all-reduce.
                assert!(received + 2 * chunks_ahead_max >= number, "{number} {send:?}");
            }
        }
    }
}

//! Every operation on every rank, in any order of events, against the plainest reference.

mod reference;
mod world;

use proptest::prelude::*;

use self::reference::{DTYPES, OPS, elements, reduced};
use self::world::{Part, Random, run};
use super::{Planner, Tuning};
use crate::collective::ReduceOp;
use crate::collective::program::Program;
use crate::collective::reduction::Reduction;
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
    (1..40_usize, threshold(), threshold(), threshold(), 0..9_usize).prop_map(
        |(chunk_bytes, gathered, reduced, rooted, pairwise_ranks_max)| Tuning {
            chunk_bytes,
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
        self.in_place >> rank & 1 == 1
    }

    /// The outputs. Every rank has heard of all.
    fn run(&self, part: impl FnMut(usize) -> Part) -> Vec<Vec<u8>> {
        let (outputs, heard) = run((0..self.size).map(part).collect(), self.seed);
        assert_eq!(heard, vec![(1 << self.size) - 1; self.size], "who has heard of whom");
        outputs
    }

    /// Every rank's input.
    fn inputs(&self, dtype: DType, op: ReduceOp, counts: impl Fn(usize) -> usize) -> Vec<Vec<u8>> {
        let mut random = Random(!self.seed);
        (0..self.size).map(|rank| elements(dtype, op, counts(rank), &mut random)).collect()
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
        let inputs = case.inputs(dtype, op, |_| count);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).all_reduce(count, &reduction, case.in_place(rank));
            case.same_place(rank, program, &inputs[rank])
        });
        prop_assert_eq!(outputs, vec![reduced(dtype, op, &inputs); case.size]);
    }

    #[test]
    fn a_reduce_gives_the_root_the_reduction_and_changes_no_input(
        case in cases(), (dtype, op) in reductions(), count in 0..60_usize,
    ) {
        let reduction = Reduction::new(dtype, op, case.size).unwrap();
        let inputs = case.inputs(dtype, op, |_| count);
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
        even in any::<bool>(),
    ) {
        let reduction = Reduction::new(dtype, op, case.size).unwrap();
        let total: usize = counts[..case.size].iter().sum();
        // The first ones are larger.
        let share = |rank: usize| (total + case.size - 1 - rank) / case.size;
        let counts: Vec<_> = (0..case.size).map(|rank| if even { share(rank) } else { counts[rank] }).collect();
        let inputs = case.inputs(dtype, op, |_| total);
        let block = |rank: usize| {
            let at: usize = counts[..rank].iter().sum();
            at * dtype.item_bytes()..(at + counts[rank]) * dtype.item_bytes()
        };
        let outputs = case.run(|rank| {
            let (planner, in_place) = (case.planner(rank), case.in_place(rank));
            let program = match even {
                true => planner.reduce_scatter(total, &reduction, in_place),
                false => planner.reduce_scatterv(&counts, &reduction, in_place),
            };
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
        let inputs = case.inputs(DType::UInt8, ReduceOp::Sum, |_| bytes);
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
        case in cases(), bytes in prop::collection::vec(0..40_usize, 8), equal in any::<bool>(),
    ) {
        let bytes: Vec<_> = (0..case.size).map(|rank| bytes[if equal { 0 } else { rank }]).collect();
        let inputs = case.inputs(DType::UInt8, ReduceOp::Sum, |rank| bytes[rank]);
        let outputs = case.run(|rank| {
            let (planner, in_place) = (case.planner(rank), case.in_place(rank));
            let program = match equal {
                true => planner.all_gather(bytes[0], in_place),
                false => planner.all_gatherv(&bytes, in_place),
            };
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
        let inputs = case.inputs(DType::UInt8, ReduceOp::Sum, |_| bytes);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).gather(bytes, case.root);
            Part::apart(program, inputs[rank].clone(), if rank == case.root { bytes * case.size } else { 0 })
        });
        prop_assert_eq!(&outputs[case.root], &inputs.concat());
    }

    #[test]
    fn a_scatter_gives_every_rank_its_block(case in cases(), bytes in 0..40_usize) {
        let inputs = case.inputs(DType::UInt8, ReduceOp::Sum, |_| bytes);
        let outputs = case.run(|rank| {
            let program = case.planner(rank).scatter(bytes, case.root);
            Part::apart(program, if rank == case.root { inputs.concat() } else { Vec::new() }, bytes)
        });
        prop_assert_eq!(outputs, inputs);
    }

    #[test]
    fn an_all_to_all_gives_every_rank_its_block_of_each(case in cases(), bytes in 0..40_usize) {
        let inputs = case.inputs(DType::UInt8, ReduceOp::Sum, |_| bytes * case.size);
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
        let input = elements(DType::UInt8, ReduceOp::Sum, bytes, &mut Random(!seed));
        let mut parts = vec![
            Part::apart(Planner::new(sender, 2, tuning).send(receiver, bytes), input.clone(), 0),
            Part::apart(Planner::new(receiver, 2, tuning).recv(sender, bytes), Vec::new(), bytes),
        ];
        if swapped {
            parts.swap(0, 1);
        }
        let (outputs, heard) = run(parts, seed);
        prop_assert_eq!(&outputs[receiver], &input);
        prop_assert_eq!(heard, [3, 3]);
    }
}

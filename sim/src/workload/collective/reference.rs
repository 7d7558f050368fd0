//! What each member gives and must get, computed by one who has everybody's tensors, in the simplest way.

use half::{bf16, f16};
use kvpipe::collective::ReduceOp;
use kvpipe::tensor::DType;

use super::call::{Call, Kind};
use crate::draws::mix;

/// What can be computed with in any order, as the values here are drawn.
pub(super) const NUMBERS: [DType; 12] = [
    DType::UInt8,
    DType::Int8,
    DType::UInt16,
    DType::Int16,
    DType::UInt32,
    DType::Int32,
    DType::UInt64,
    DType::Int64,
    DType::Float16,
    DType::BFloat16,
    DType::Float32,
    DType::Float64,
];

/// What a member gives, if it gives anything.
pub(super) fn input(call: &Call, member: usize) -> Option<Vec<u8>> {
    let bytes = call.input_rows(member)? * call.row_bytes();
    let stream = mix(call.seed, member as u64);
    Some(match call.kind.reduces() {
        true => with_numbers(call.dtype, Task::Draw { stream, bytes, op: call.op }),
        // Whatever they are elements of, ones and zeros are some.
        false => (0..bytes).map(|at| mix(stream, at as u64).to_le_bytes()[3] & 1).collect(),
    })
}

/// What a member must get, if it gets anything.
pub(super) fn output(call: &Call, member: usize) -> Option<Vec<u8>> {
    let input = |member| input(call, member).unwrap_or_default();
    let size = call.rows.len();
    let everybodys = || (0..size).map(input).collect::<Vec<_>>();
    let own_part = |whole: &[u8]| {
        let at = call.rows[..member].iter().sum::<usize>() * call.row_bytes();
        whole[at..][..call.rows[member] * call.row_bytes()].to_vec()
    };
    let reduced = || with_numbers(call.dtype, Task::Reduce { inputs: &everybodys(), op: call.op });
    let is_root = member == call.root;
    match call.kind {
        Kind::Barrier => None,
        Kind::AllReduce => Some(reduced()),
        Kind::Reduce => is_root.then(reduced),
        Kind::ReduceScatter | Kind::ReduceScatterv => Some(own_part(&reduced())),
        Kind::Broadcast => Some(input(call.root)),
        Kind::AllGather | Kind::AllGatherv => Some(everybodys().concat()),
        Kind::Gather => is_root.then(|| everybodys().concat()),
        Kind::Scatter => Some(own_part(&input(call.root))),
        Kind::AllToAll => Some(everybodys().iter().map(|whole| own_part(whole)).collect::<Vec<_>>().concat()),
        Kind::Send => is_root.then(|| input(call.from)),
    }
}

/// What is done with the elements of a dtype.
enum Task<'a> {
    /// So many bytes of a stream.
    Draw { stream: u64, bytes: usize, op: ReduceOp },
    /// Combines, element by element.
    Reduce { inputs: &'a [Vec<u8>], op: ReduceOp },
}

fn with_numbers(dtype: DType, task: Task<'_>) -> Vec<u8> {
    match dtype {
        DType::UInt8 => task.of::<u8, 1>(),
        DType::Int8 => task.of::<i8, 1>(),
        DType::UInt16 => task.of::<u16, 2>(),
        DType::Int16 => task.of::<i16, 2>(),
        DType::UInt32 => task.of::<u32, 4>(),
        DType::Int32 => task.of::<i32, 4>(),
        DType::UInt64 => task.of::<u64, 8>(),
        DType::Int64 => task.of::<i64, 8>(),
        DType::Float16 => task.of::<f16, 2>(),
        DType::BFloat16 => task.of::<bf16, 2>(),
        DType::Float64 => task.of::<f64, 8>(),
        _ => task.of::<f32, 4>(),
    }
}

impl Task<'_> {
    fn of<T: Number<N>, const N: usize>(self) -> Vec<u8> {
        match self {
            Self::Draw { stream, bytes, op } => {
                let word = |at| mix(stream, at as u64);
                (0..bytes / N).flat_map(|at| T::drawn(word(at), op).store()).collect()
            }
            Self::Reduce { inputs, op } => {
                let element = |at: usize| {
                    let all: Vec<T> = inputs.iter().map(|input| T::load(input.as_chunks().0[at])).collect();
                    T::combined(&all, op).store()
                };
                (0..inputs[0].len() / N).flat_map(element).collect()
            }
        }
    }
}

/// What can be computed with, in `N` bytes.
trait Number<const N: usize>: Copy {
    fn load(bytes: [u8; N]) -> Self;
    fn store(self) -> [u8; N];
    fn drawn(word: u64, op: ReduceOp) -> Self;
    fn combined(all: &[Self], op: ReduceOp) -> Self;
}

macro_rules! integers {
    ($($integer:ty)*) => {
        $(impl Number<{ size_of::<$integer>() }> for $integer {
            fn load(bytes: [u8; size_of::<Self>()]) -> Self { Self::from_le_bytes(bytes) }
            fn store(self) -> [u8; size_of::<Self>()] { self.to_le_bytes() }
            fn drawn(word: u64, _: ReduceOp) -> Self { (word >> 7) as $integer }
            fn combined(all: &[Self], op: ReduceOp) -> Self {
                let sum = all.iter().fold(0, |sum: Self, one| sum.wrapping_add(*one));
                match op {
                    ReduceOp::Sum => sum,
                    ReduceOp::Prod => all.iter().fold(1, |product: Self, one| product.wrapping_mul(*one)),
                    ReduceOp::Min => all.iter().copied().fold(Self::MAX, Self::min),
                    ReduceOp::Max => all.iter().copied().fold(Self::MIN, Self::max),
                    ReduceOp::Avg => sum / all.len() as $integer,
                }
            }
        })*
    };
}

integers! { u8 i8 u16 i16 u32 i32 u64 i64 }

macro_rules! floats {
    ($($float:ty, $wide:ty, $widen:expr, $narrow:expr;)*) => {
        $(impl Number<{ size_of::<$float>() }> for $float {
            fn load(bytes: [u8; size_of::<Self>()]) -> Self { Self::from_le_bytes(bytes) }
            fn store(self) -> [u8; size_of::<Self>()] { self.to_le_bytes() }
            // Whole numbers, of which each sum and each product is exact, whatever the order.
            fn drawn(word: u64, op: ReduceOp) -> Self {
                let choices = if op == ReduceOp::Prod { [1.0, -1.0, 2.0, -2.0] } else { [-3.0, 1.0, 5.0, 12.0] };
                $narrow(choices[(word >> 7) as usize % 4])
            }
            fn combined(all: &[Self], op: ReduceOp) -> Self {
                let wide = all.iter().map(|one| $widen(*one));
                let sum: $wide = wide.clone().sum();
                $narrow(match op {
                    ReduceOp::Sum => sum,
                    ReduceOp::Prod => wide.product(),
                    ReduceOp::Min => wide.fold(<$wide>::INFINITY, <$wide>::min),
                    ReduceOp::Max => wide.fold(<$wide>::NEG_INFINITY, <$wide>::max),
                    ReduceOp::Avg => sum / all.len() as $wide,
                })
            }
        })*
    };
}

floats! {
    f16, f32, f16::to_f32, f16::from_f32;
    bf16, f32, bf16::to_f32, bf16::from_f32;
    f32, f32, std::convert::identity, std::convert::identity;
    f64, f64, std::convert::identity, std::convert::identity;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced<T: Number<N>, const N: usize>(dtype: DType, op: ReduceOp, elements: &[T]) -> Vec<u8> {
        let inputs: Vec<_> = elements.iter().map(|element| element.store().to_vec()).collect();
        with_numbers(dtype, Task::Reduce { inputs: &inputs, op })
    }

    #[test]
    fn integers_wrap_and_their_mean_is_cut_towards_zero() {
        assert_eq!(reduced(DType::UInt8, ReduceOp::Sum, &[200_u8, 100]), [44]);
        assert_eq!(reduced(DType::Int8, ReduceOp::Prod, &[100_i8, 2]), (-56_i8).to_le_bytes());
        assert_eq!(reduced(DType::Int16, ReduceOp::Avg, &[-5_i16, -2]), (-3_i16).to_le_bytes());
        assert_eq!(reduced(DType::Int64, ReduceOp::Min, &[3_i64, -7]), (-7_i64).to_le_bytes());
        assert_eq!(reduced(DType::UInt32, ReduceOp::Max, &[3_u32, 7]), 7_u32.to_le_bytes());
    }

    #[test]
    fn floats_are_rounded_once() {
        let third = [1.0, -3.0, 12.0].map(f16::from_f32);
        assert_eq!(reduced(DType::Float16, ReduceOp::Avg, &third), f16::from_f32(10.0 / 3.0).to_le_bytes());
        assert_eq!(
            reduced(DType::Float64, ReduceOp::Avg, &[1.0, -3.0, 12.0]),
            (10.0 / 3.0_f64).to_le_bytes()
        );
        assert_eq!(reduced(DType::Float32, ReduceOp::Prod, &[2.0_f32, -2.0]), (-4.0_f32).to_le_bytes());
    }

    #[test]
    fn who_gives_and_gets_what() {
        // Three members with one, none and two rows of a byte.
        let call = |kind| Call { kind, rows: vec![1, 0, 2], root: 2, from: 1, ..Call::barrier(3) };
        let lengths = |kind| {
            let call = call(kind);
            [input, output].map(|of| [0, 1, 2].map(|member| of(&call, member).map(|bytes| bytes.len())))
        };
        let (all, parts) = ([Some(3); 3], [Some(1), Some(0), Some(2)]);
        assert_eq!(lengths(Kind::Barrier), [[None; 3]; 2]);
        assert_eq!(lengths(Kind::AllReduce), [all, all]);
        assert_eq!(lengths(Kind::Reduce), [all, [None, None, Some(3)]]);
        assert_eq!(lengths(Kind::Broadcast), [[None, None, Some(3)], all]);
        assert_eq!(lengths(Kind::AllGatherv), [parts, all]);
        assert_eq!(lengths(Kind::ReduceScatterv), [all, parts]);
        assert_eq!(lengths(Kind::Send), [[None, Some(3), None], [None, None, Some(3)]]);
        let gathered = output(&call(Kind::AllGatherv), 1).unwrap();
        let inputs = [0, 1, 2].map(|member| input(&call(Kind::AllGatherv), member).unwrap());
        assert_eq!(gathered, inputs.concat());
        let call =
            Call { kind: Kind::AllToAll, rows: vec![2, 2, 2], dtype: DType::Bool, ..call(Kind::AllToAll) };
        let inputs = [0, 1, 2].map(|member| input(&call, member).unwrap());
        assert_eq!(output(&call, 1).unwrap(), inputs.map(|input| input[2..4].to_vec()).concat());
    }
}

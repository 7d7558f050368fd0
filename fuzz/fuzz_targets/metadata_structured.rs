//! Metadata by its fields rather than its bytes: every possible one survives, and with one field
//! changed, cut off or lengthened, what is accepted is another one's only encoding.

#![no_main]

use kvpipe::tensor::{DType, MAX_DIMS, Shape};
use kvpipe::wire::metadata::{Metadata, TensorMetadata};
use kvpipe_fuzz::{check, within_limit};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// An item, and what is done to its encoding.
#[derive(Arbitrary, Debug)]
struct Input {
    item: Option<(u8, Vec<Dim>)>,
    field: u8,
    change: Change,
}

/// Small ones often, since large ones are too large together.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Dim {
    Small(u8),
    Any(u64),
}

/// What is done to one field, or to the end.
#[derive(Arbitrary, Debug)]
enum Change {
    Set(u64),
    Add(i8),
    Flip(u8),
    Swap(u8),
    Remove,
    Repeat,
    Cut(u8),
    Append(Vec<u8>),
}

fuzz_target!(|input: Input| {
    let Some(metadata) = metadata(input.item) else { return };
    let encoded = metadata.encode();
    assert!(encoded.len() <= Metadata::MAX_BYTES);
    assert_eq!(within_limit(|| Metadata::decode(&encoded)), Ok(metadata));

    let changed = change(fields(&encoded), input.field.into(), input.change);
    check(&changed, Metadata::decode, Metadata::encode_into, 0);
    // No other bytes mean the same.
    assert_eq!(Metadata::decode(&changed) == Ok(metadata), changed == encoded);
});

/// None for what no tensor can be.
fn metadata(item: Option<(u8, Vec<Dim>)>) -> Option<Metadata> {
    let Some((dtype, mut dims)) = item else { return Some(Metadata::None) };
    dims.truncate(MAX_DIMS);
    let dims: Vec<usize> = dims
        .into_iter()
        .map(|dim| match dim {
            Dim::Small(dim) => dim.into(),
            Dim::Any(dim) => dim as usize,
        })
        .collect();
    let dtype = DType::ALL[usize::from(dtype) % DType::ALL.len()];
    let tensor = TensorMetadata::new(dtype, Shape::new(&dims).ok()?).ok()?;
    assert_eq!((tensor.dtype(), tensor.shape().dims()), (dtype, &dims[..]));
    Some(Metadata::Tensor(tensor))
}

/// Four of one byte, if it is a tensor's, and then numbers of eight.
fn fields(encoded: &[u8]) -> Vec<Vec<u8>> {
    let (short, long) = encoded.split_at(encoded.len().min(4));
    short.chunks(1).chain(long.chunks(size_of::<u64>())).map(<[u8]>::to_vec).collect()
}

fn change(mut fields: Vec<Vec<u8>>, which: usize, change: Change) -> Vec<u8> {
    let count = fields.len();
    let which = which % count;
    let before = number(&fields[which]);
    match change {
        Change::Set(number) => set(&mut fields[which], number),
        Change::Add(delta) => set(&mut fields[which], before.wrapping_add_signed(delta.into())),
        Change::Flip(bit) => set(&mut fields[which], before ^ 1 << (bit % 64)),
        Change::Swap(with) => fields.swap(which, usize::from(with) % count),
        Change::Remove => drop(fields.remove(which)),
        Change::Repeat => fields.insert(which, fields[which].clone()),
        Change::Cut(bytes) => {
            let mut whole = fields.concat();
            whole.truncate(whole.len().saturating_sub(bytes.into()));
            return whole;
        }
        Change::Append(bytes) => fields.push(bytes),
    }
    fields.concat()
}

fn number(field: &[u8]) -> u64 {
    field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// As much of it as the field holds.
fn set(field: &mut [u8], number: u64) {
    field.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, new)| *byte = new);
}

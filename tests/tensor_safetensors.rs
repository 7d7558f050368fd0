//! safetensors files, read and written through the public API.
#![cfg(feature = "safetensors")]

use std::fs;
use std::path::PathBuf;

use ::safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use bytes::Bytes;
use kvpipe::Result;
use kvpipe::tensor::{BufferMut, DType, Shape, Tensor, safetensors};
use proptest::prelude::*;
use tempfile::TempDir;

type Named = Vec<(String, Tensor)>;

fn scratch() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.safetensors");
    (directory, path)
}

/// A tensor whose bytes count up.
fn counting(dtype: DType, dims: &[usize]) -> Tensor {
    let len = Shape::new(dims).unwrap().byte_len(dtype).unwrap();
    Tensor::new(dtype, dims, (0..len).map(|byte| byte as u8).collect()).unwrap()
}

fn named(tensors: impl IntoIterator<Item = Tensor>) -> Named {
    tensors.into_iter().enumerate().map(|(index, tensor)| (format!("{index:06}"), tensor)).collect()
}

fn has_safetensors_form(dtype: DType) -> bool {
    dtype.safetensors_name().is_some() || dtype == DType::Float4E2m1fnX2
}

/// A file with this header, however wrong.
fn file(header: &str, data: &[u8]) -> Bytes {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file.into()
}

fn refusal(file: Bytes) -> String {
    let message = safetensors::decode(&file).unwrap_err().to_string();
    message.strip_prefix("decoding safetensors: ").expect("says what it was doing").to_string()
}

fn round_trip(tensors: &Named) -> Result<Named> {
    let (_directory, path) = scratch();
    safetensors::write(&path, tensors)?;
    safetensors::read(&path)
}

#[test]
fn every_dtype_comes_back_in_order() {
    let dtypes = DType::ALL.iter().copied().filter(|&dtype| has_safetensors_form(dtype));
    // Larger items first keeps everything aligned, so that the order holds.
    let mut dtypes: Vec<DType> = dtypes.collect();
    dtypes.sort_by_key(|dtype| std::cmp::Reverse(dtype.item_bytes()));
    assert_eq!(dtypes.len(), 20);
    let tensors = named(dtypes.into_iter().map(|dtype| counting(dtype, &[2, 3])));
    assert_eq!(round_trip(&tensors).unwrap(), tensors);
}

#[test]
fn scalars_and_tensors_without_elements_come_back_in_order() {
    let shapes: [&[usize]; 7] = [&[0], &[], &[0, 3], &[3, 0], &[], &[0], &[2]];
    let tensors = named(shapes.map(|dims| counting(DType::BFloat16, dims)));
    assert_eq!(round_trip(&tensors).unwrap(), tensors);
}

#[test]
fn no_tensors_make_a_file_too() {
    assert_eq!(round_trip(&Vec::new()).unwrap(), []);
}

#[test]
fn names_may_hold_anything() {
    let odd = ["", "\"", "\\", "\n\u{0}", "\u{1F980}", "__metadata"];
    let tensors: Named = odd.map(|name| (name.to_string(), counting(DType::UInt8, &[1]))).into();
    assert_eq!(round_trip(&tensors).unwrap(), tensors);
}

#[test]
fn four_bit_floats_are_counted_singly_in_the_file() {
    let (_directory, path) = scratch();
    let pairs = named([counting(DType::Float4E2m1fnX2, &[2, 3])]);
    safetensors::write(&path, &pairs).unwrap();
    let contents = fs::read(&path).unwrap();
    let view = SafeTensors::deserialize(&contents).unwrap().tensor("000000").unwrap();
    assert_eq!((view.dtype(), view.shape()), (Dtype::F4, &[2, 6][..]));
    assert_eq!(safetensors::read(&path).unwrap(), pairs);
}

#[test]
fn the_safetensors_crate_reads_what_we_write() {
    let (_directory, path) = scratch();
    let tensors = named([counting(DType::Bool, &[3]), counting(DType::Complex64, &[5])]);
    safetensors::write(&path, &tensors).unwrap();
    let contents = fs::read(&path).unwrap();
    let theirs = SafeTensors::deserialize(&contents).unwrap();
    for (name, tensor) in &tensors {
        let view = theirs.tensor(name).unwrap();
        assert_eq!(Some(format!("{:?}", view.dtype()).as_str()), tensor.dtype().safetensors_name());
        assert_eq!((view.shape(), view.data()), (tensor.shape().dims(), &tensor.bytes().unwrap()[..]));
    }
}

#[test]
fn we_read_what_the_safetensors_crate_writes() {
    let data = [1_u8, 0, 2, 0, 3, 0, 4, 0];
    let views = [
        ("bytes", TensorView::new(Dtype::U8, vec![8], &data).unwrap()),
        ("words", TensorView::new(Dtype::F64, vec![], &data).unwrap()),
    ];
    let tensors = safetensors::decode(&serialize(views, None).unwrap().into()).unwrap();
    // Larger items first.
    let [(first, words), (second, bytes)] = &tensors[..] else { panic!("{tensors:?}") };
    assert_eq!((&first[..], words.dtype(), words.shape().dims()), ("words", DType::Float64, &[][..]));
    assert_eq!((&second[..], bytes.as_slice::<u8>().unwrap()), ("bytes", &data[..]));
}

#[test]
fn tensors_come_by_data_offset_and_ties_in_header_order() {
    let header = r#"{"late":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},
        "zz":{"dtype":"U8","shape":[0],"data_offsets":[1,1]},
        "__metadata__":{"format":"pt"},
        "aa":{"dtype":"F32","shape":[0,7],"data_offsets":[1,1]},
        "early":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let tensors = safetensors::decode(&file(header, &[1, 2])).unwrap();
    let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["early", "late", "zz", "aa"]);
}

#[test]
fn many_tensors_without_bytes_keep_their_order() {
    let tensors: Named = (0..100).rev().map(|i| (format!("{i}"), counting(DType::Int64, &[0]))).collect();
    assert_eq!(round_trip(&tensors).unwrap(), tensors);
}

#[test]
fn nothing_is_copied_out_of_the_file() {
    let header = r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
    let file = file(header, &[7, 8, 9]);
    let tensors = safetensors::decode(&file).unwrap();
    assert_eq!(tensors[0].1.bytes().unwrap().as_ptr(), file[file.len() - 3..].as_ptr());
}

#[test]
fn misaligned_data_is_a_tensor_that_only_to_vec_reads() {
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
    let header = format!("{header:<152}");
    let contents = file(&header, &[&[0], &1.5_f32.to_le_bytes()[..]].concat());
    // At an aligned address, so that the data begins at one too, and `b` at the next.
    let mut aligned = BufferMut::zeroed(contents.len()).unwrap();
    aligned.copy_from_slice(&contents);
    let tensors = safetensors::decode(&aligned.freeze()).unwrap();
    let refusal = tensors[1].1.as_slice::<f32>().unwrap_err().to_string();
    assert_eq!(refusal, "the payload of float32 [1] is not aligned to 4 bytes; copy it with to_vec");
    assert_eq!(tensors[1].1.to_vec::<f32>().unwrap(), [1.5]);
}

#[test]
fn data_is_written_in_the_given_order_if_that_keeps_it_aligned() {
    let aligned = named([counting(DType::UInt8, &[8]), counting(DType::Float64, &[1])]);
    assert_eq!(round_trip(&aligned).unwrap(), aligned);
}

#[test]
fn a_tensor_without_bytes_can_not_be_misaligned() {
    let aligned = named(
        [(DType::UInt8, 3), (DType::UInt8, 4), (DType::Float64, 0)].map(|(dtype, n)| counting(dtype, &[n])),
    );
    assert_eq!(round_trip(&aligned).unwrap(), aligned);
}

#[test]
fn data_that_would_be_misaligned_is_written_by_item_size() {
    let tensors = named([
        counting(DType::UInt8, &[3]),
        counting(DType::Float16, &[3]),
        counting(DType::Int8, &[1]),
        counting(DType::Float64, &[3]),
        counting(DType::BFloat16, &[1]),
    ]);
    let read = round_trip(&tensors).unwrap();
    let names: Vec<&str> = read.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["000003", "000001", "000004", "000000", "000002"]);
    for (_, tensor) in &read {
        assert_eq!(tensor.bytes().unwrap().as_ptr().addr() % tensor.dtype().item_bytes(), 0);
    }
    let mut sorted = read.clone();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(sorted, tensors);
}

#[test]
fn a_mapped_file_may_be_replaced() {
    let (_directory, path) = scratch();
    let (old, new) = (named([counting(DType::UInt8, &[9000])]), named([counting(DType::Int8, &[1])]));
    safetensors::write(&path, &old).unwrap();
    let mapped = safetensors::read(&path).unwrap();
    safetensors::write(&path, &new).unwrap();
    assert_eq!(mapped, old);
    assert_eq!(safetensors::read(&path).unwrap(), new);
}

#[test]
fn a_failure_to_read_names_the_file() {
    let (directory, path) = scratch();
    let message = |path| safetensors::read(path).unwrap_err().to_string();
    assert!(message(path.clone()).starts_with(&format!("mapping {}: ", path.display())));
    fs::write(&path, b"").unwrap();
    let expected = format!("reading {}: 0 bytes are too few for a safetensors file", path.display());
    assert_eq!(message(path), expected);
    let folder = directory.path().to_path_buf();
    assert_eq!(message(folder.clone()), format!("mapping {}: not a regular file", folder.display()));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = serialize([("a", TensorView::new(Dtype::F32, vec![2], &[1; 8]).unwrap())], None).unwrap();
    for len in 0..whole.len() {
        assert!(safetensors::decode(&Bytes::copy_from_slice(&whole[..len])).is_err(), "{len} bytes");
    }
    let cut = Bytes::copy_from_slice(&whole[..whole.len() - 1]);
    assert_eq!(
        refusal(cut),
        "tensor \"a\" ends at byte 8 of the data, of which there are 7: the file is truncated"
    );
    assert!(safetensors::decode(&[&whole[..], &[0]].concat().into()).is_err(), "trailing byte");
}

#[test]
fn an_absurd_header_length_is_refused() {
    let claim = |length: u64| Bytes::from([&length.to_le_bytes()[..], b"{}"].concat());
    assert_eq!(refusal(claim(3)), "a header of 3 bytes does not fit in a file of 10 bytes");
    assert_eq!(
        refusal(claim(u64::MAX)),
        format!("a header of {} bytes is over the limit of 100000000", u64::MAX)
    );
    assert_eq!(refusal(Bytes::from_static(b"{}")), "2 bytes are too few for a safetensors file");
}

#[test]
fn a_corrupt_header_is_refused() {
    for header in ["", "{", "[]", "null", "{}{}", "\u{0}{}", r#"{"a":1}"#, r#"{"a":{"dtype":"U8"}}"#] {
        let message = refusal(file(header, &[]));
        assert!(message.starts_with("the header is invalid: "), "{header:?}: {message}");
    }
}

/// One tensor, `a`, over four bytes of data.
fn refused_declaration(dtype: &str, shape: &str, offsets: &str) -> String {
    let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
    refusal(file(&header, &[0; 4]))
}

#[test]
fn a_declaration_that_contradicts_itself_is_refused() {
    assert_eq!(
        refused_declaration("U8", "[3]", "[0,4]"),
        "tensor \"a\": a tensor uint8 [3] takes 3 bytes, not 4"
    );
    assert!(refused_declaration("U8", "[4]", "[4,0]").contains("tensor \"a\": its data ends at 0, before"));
    assert!(refused_declaration("U8", "[4]", "[0,5]").contains("the file is truncated"));
    assert!(refused_declaration("U8", "[-4]", "[0,4]").contains("tensor \"a\""));
    assert!(refused_declaration("U8", "[4294967296,4294967296]", "[0,4]").contains("over the limit"));
    assert!(
        refused_declaration("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,4]", "[0,4]")
            .contains("a shape of 15 dimensions is over the limit of 14")
    );
    // Not all of the data belongs to a tensor.
    assert!(!refused_declaration("U8", "[3]", "[0,3]").is_empty());
    assert!(!refused_declaration("U8", "[3]", "[1,4]").is_empty());
}

#[test]
fn overlapping_tensors_are_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
        "b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    assert!(refusal(file(header, &[0; 4])).contains("invalid offset"));
}

#[test]
fn a_name_used_twice_is_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},
        "a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    assert_eq!(refusal(file(header, &[0; 4])), "the header has two tensors of name \"a\"");
}

#[test]
fn dtypes_that_torch_lacks_are_refused_by_name() {
    for dtype in ["F6_E2M3", "F6_E3M2", "F7", ""] {
        assert_eq!(
            refused_declaration(dtype, "[4]", "[0,4]"),
            format!("tensor \"a\": torch has no dtype {dtype:?}")
        );
    }
}

#[test]
fn four_bit_floats_without_a_partner_are_refused() {
    let expected = "tensor \"a\": torch holds F4 in pairs, so the last dimension of [8, 1] must be even";
    assert_eq!(refused_declaration("F4", "[8,1]", "[0,4]"), expected);
    assert!(refused_declaration("F4", "[]", "[0,4]").contains("must be even"));
}

#[test]
fn dtypes_that_the_format_lacks_are_refused_by_name_and_nothing_is_written() {
    let (directory, path) = scratch();
    for &dtype in DType::ALL.iter().filter(|&&dtype| !has_safetensors_form(dtype)) {
        let message = safetensors::write(&path, &named([counting(dtype, &[2])])).unwrap_err().to_string();
        assert_eq!(
            message,
            format!("tensor \"000000\" can't be written to safetensors: the format has no dtype {dtype}")
        );
    }
    let scalar = named([counting(DType::Float4E2m1fnX2, &[])]);
    assert!(safetensors::write(&path, &scalar).unwrap_err().to_string().contains("scalar pair"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn names_that_no_reader_would_accept_are_refused() {
    let (directory, path) = scratch();
    let tensor = counting(DType::UInt8, &[1]);
    let twice = [("a", tensor.clone()), ("a", tensor.clone())];
    assert_eq!(safetensors::write(&path, &twice).unwrap_err().to_string(), "two tensors are named \"a\"");
    let reserved = [("__metadata__", tensor)];
    assert!(safetensors::write(&path, &reserved).unwrap_err().to_string().contains("reserves"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_failure_to_write_names_the_file() {
    let (_directory, path) = scratch();
    let nowhere = path.join("file");
    let message = safetensors::write(&nowhere, &named([])).unwrap_err().to_string();
    assert!(message.starts_with(&format!("writing {}: ", nowhere.display())), "{message}");
}

fn tensor() -> impl Strategy<Value = Tensor> {
    let forms: Vec<DType> = DType::ALL.iter().copied().filter(|&dtype| has_safetensors_form(dtype)).collect();
    (prop::sample::select(forms), prop::collection::vec(0..4_usize, 1..4), any::<u8>()).prop_map(
        |(dtype, dims, fill)| {
            let len = Shape::new(&dims).unwrap().byte_len(dtype).unwrap();
            Tensor::new(dtype, &dims[..], vec![fill; len].into()).unwrap()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tensors_come_back_under_their_names(tensors in prop::collection::vec(tensor(), 0..8)) {
        let tensors = named(tensors);
        let mut read = round_trip(&tensors).unwrap();
        read.sort_by(|(a, _), (b, _)| a.cmp(b));
        prop_assert_eq!(read, tensors);
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic_and_agree_with_the_crate(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let views = [
            ("a", TensorView::new(Dtype::F32, vec![1, 2], &[1; 8]).unwrap()),
            ("b", TensorView::new(Dtype::U8, vec![0], &[]).unwrap()),
        ];
        let mut file = serialize(views, None).unwrap();
        let at = at.index(file.len());
        file[at] = byte;
        // We may refuse more than the crate does, such as torch's missing dtypes; never less.
        if safetensors::decode(&file.clone().into()).is_ok() {
            prop_assert!(SafeTensors::deserialize(&file).is_ok());
        }
    }
}

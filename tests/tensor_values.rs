//! Tensors through the public API: construction, element access, equality, `Debug`.

use bytes::Bytes;
use half::{bf16, f16};
use kvpipe::tensor::{ALIGNMENT, BufferMut, DType, Element, Payload, Shape, Tensor};
use proptest::prelude::*;

fn message<T: std::fmt::Debug>(result: kvpipe::Result<T>) -> String {
    result.unwrap_err().to_string()
}

/// Foreign bytes at an address that is odd.
fn misaligned(bytes: &[u8]) -> Bytes {
    let mut buffer = BufferMut::zeroed(bytes.len() + 1).unwrap();
    buffer[1..].copy_from_slice(bytes);
    buffer.freeze().slice(1..)
}

fn elements_survive<T: Element>(elements: &[T]) {
    let copied = Tensor::from_slice([elements.len()], elements).unwrap();
    assert_eq!(copied.dtype(), T::DTYPE);
    assert_eq!(copied.byte_len(), size_of_val(elements));
    assert_eq!(copied.as_slice::<T>().unwrap(), elements);
    assert_eq!(copied.to_vec::<T>().unwrap(), elements);
    assert_eq!(copied, Tensor::from_vec([elements.len()], elements.to_vec()).unwrap());
}

#[test]
fn every_element_type_survives() {
    elements_survive(&[0_u8, 1, u8::MAX]);
    elements_survive(&[i8::MIN, -1, 2]);
    elements_survive(&[0_u16, u16::MAX]);
    elements_survive(&[i16::MIN, 7]);
    elements_survive(&[0_u32, u32::MAX]);
    elements_survive(&[i32::MIN, 7]);
    elements_survive(&[0_u64, u64::MAX]);
    elements_survive(&[i64::MIN, 7]);
    elements_survive(&[f16::MIN, f16::INFINITY]);
    elements_survive(&[bf16::MIN, bf16::INFINITY]);
    elements_survive(&[f32::MIN, f32::INFINITY]);
    elements_survive(&[f64::MIN, f64::INFINITY]);
    elements_survive(&[true, false]);
}

#[test]
fn bytes_are_little_endian_and_row_major() {
    let tensor = Tensor::from_slice([2, 2], &[1_u16, 2, 3, 0x0405]).unwrap();
    assert_eq!(tensor.bytes().unwrap()[..], [1, 0, 2, 0, 3, 0, 5, 4]);
}

#[test]
fn a_copied_tensor_is_aligned_for_vector_loads() {
    let tensor = Tensor::from_slice([3], &[1_u8, 2, 3]).unwrap();
    assert_eq!(tensor.bytes().unwrap().as_ptr().addr() % ALIGNMENT, 0);
}

#[test]
fn a_vec_is_taken_over_without_a_copy() {
    let elements = vec![1.0_f32; 1000];
    let address = elements.as_ptr().addr();
    let tensor = Tensor::from_vec([10, 100], elements).unwrap();
    assert_eq!(tensor.bytes().unwrap().as_ptr().addr(), address);
    assert_eq!(tensor.as_slice::<f32>().unwrap().len(), 1000);
}

#[test]
fn clones_share_the_payload() {
    let tensor = Tensor::from_slice([2], &[1_i64, 2]).unwrap();
    let Payload::Host(bytes) = tensor.clone().payload().clone() else { panic!("not in host memory") };
    assert_eq!(bytes.as_ptr(), tensor.bytes().unwrap().as_ptr());
}

#[test]
fn a_scalar_holds_one_element() {
    let scalar = Tensor::from_slice([], &[1.5_f64]).unwrap();
    assert_eq!(scalar.shape(), &Shape::SCALAR);
    assert_eq!(scalar.as_slice::<f64>().unwrap(), [1.5]);
}

#[test]
fn a_tensor_without_elements_reads_as_an_empty_slice() {
    for empty in [
        Tensor::from_slice::<f64>([0, 3], &[]).unwrap(),
        Tensor::from_vec::<f64>([0, 3], vec![]).unwrap(),
        Tensor::new(DType::Float64, [0, 3], misaligned(&[])).unwrap(),
    ] {
        assert_eq!(empty.as_slice::<f64>().unwrap(), [0.0; 0]);
        assert_eq!(empty.to_vec::<f64>().unwrap(), [0.0; 0]);
        assert_eq!(format!("{empty:?}"), "Tensor(float64 [0, 3], 0 bytes, [])");
    }
}

#[test]
fn a_payload_of_the_wrong_length_is_refused() {
    let new = |dtype, shape: [usize; 2], len| Tensor::new(dtype, shape, Bytes::from(vec![0; len]));
    assert_eq!(message(new(DType::BFloat16, [2, 3], 11)), "a tensor bfloat16 [2, 3] takes 12 bytes, not 11");
    assert_eq!(message(new(DType::BFloat16, [2, 3], 13)), "a tensor bfloat16 [2, 3] takes 12 bytes, not 13");
    assert!(new(DType::QUInt4x2, [2, 3], 4).is_ok());
    assert_eq!(message(new(DType::QUInt4x2, [2, 3], 3)), "a tensor quint4x2 [2, 3] takes 4 bytes, not 3");
}

#[test]
fn a_wrong_number_of_elements_is_refused() {
    let expected = "a tensor of shape [2, 3] has 6 elements, not 5";
    assert_eq!(message(Tensor::from_slice([2, 3], &[0_u8; 5])), expected);
    assert_eq!(message(Tensor::from_vec([2, 3], vec![0_u8; 5])), expected);
}

#[test]
fn a_shape_that_overflows_is_refused() {
    assert!(message(Tensor::from_slice::<u8>([usize::MAX, 2], &[])).contains("over the limit"));
}

#[test]
fn reading_as_another_dtype_is_refused() {
    let tensor = Tensor::from_slice([1], &[1_u16]).unwrap();
    assert_eq!(message(tensor.as_slice::<i16>()), "a tensor of uint16 can't be read as int16");
    assert_eq!(message(tensor.to_vec::<f16>()), "a tensor of uint16 can't be read as float16");
}

#[test]
fn a_misaligned_payload_is_copied_but_not_borrowed() {
    let elements = [1.0_f32, -2.5];
    let tensor = Tensor::new(DType::Float32, [2], misaligned(bytemuck::cast_slice(&elements))).unwrap();
    assert_eq!(
        message(tensor.as_slice::<f32>()),
        "the payload of float32 [2] is not aligned to 4 bytes; copy it with to_vec"
    );
    assert_eq!(tensor.to_vec::<f32>().unwrap(), elements);
    assert_eq!(tensor, Tensor::from_slice([2], &elements).unwrap());
    assert_eq!(format!("{tensor:?}"), "Tensor(float32 [2], 8 bytes, [1.0, -2.5])");
}

#[test]
fn a_byte_that_is_no_bool_is_refused() {
    let tensor = Tensor::new(DType::Bool, [3], Bytes::from_static(&[0, 1, 2])).unwrap();
    let expected = "the payload of bool [3] has a byte other than 0 and 1";
    assert_eq!(message(tensor.as_slice::<bool>()), expected);
    assert_eq!(message(tensor.to_vec::<bool>()), expected);
    assert_eq!(format!("{tensor:?}"), "Tensor(bool [3], 3 bytes, [false, true, 0x02])");
}

#[test]
fn equality_is_bitwise() {
    let tensor = |element: f32| Tensor::from_slice([1], &[element]).unwrap();
    assert_eq!(tensor(f32::NAN), tensor(f32::NAN));
    assert_ne!(tensor(0.0), tensor(-0.0));
}

#[test]
fn equality_minds_dtype_and_shape() {
    let zeros = Bytes::from_static(&[0; 4]);
    let tensor = Tensor::new(DType::Float16, [2], zeros.clone()).unwrap();
    assert_ne!(tensor, Tensor::new(DType::BFloat16, [2], zeros.clone()).unwrap());
    assert_ne!(tensor, Tensor::new(DType::Float16, [1, 2], zeros).unwrap());
}

#[test]
fn debug_shows_a_few_elements_only() {
    let long = Tensor::from_vec([1 << 20], vec![7_u8; 1 << 20]).unwrap();
    assert_eq!(format!("{long:?}"), "Tensor(uint8 [1048576], 1048576 bytes, [7, 7, 7, ...])");
    assert_eq!(format!("{:?}", long.payload()), "Host(1048576 bytes)");
}

#[test]
fn debug_shows_other_dtypes_in_hexadecimal() {
    let bytes = Bytes::from_static(&[0x00, 0x3c, 0x00, 0xbc]);
    let complex = Tensor::new(DType::Complex32, [1], bytes.clone()).unwrap();
    assert_eq!(format!("{complex:?}"), "Tensor(complex32 [1], 4 bytes, [0x003c00bc])");
    let bits = Tensor::new(DType::Bits8, [4], bytes).unwrap();
    assert_eq!(format!("{bits:?}"), "Tensor(bits8 [4], 4 bytes, [0x00, 0x3c, 0x00, ...])");
}

proptest! {
    #[test]
    fn any_payload_of_any_dtype_makes_a_tensor_with_just_these_bytes(
        dtype in prop::sample::select(DType::ALL),
        dims in prop::collection::vec(0..5_usize, 0..5),
        fill in any::<u8>(),
    ) {
        let shape = Shape::new(&dims).unwrap();
        let bytes = Bytes::from(vec![fill; shape.byte_len(dtype).unwrap()]);
        let tensor = Tensor::new(dtype, &dims[..], bytes.clone()).unwrap();
        prop_assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &shape));
        prop_assert_eq!(tensor.bytes().unwrap(), &bytes);
        let debug = format!("{tensor:?}");
        prop_assert!(debug.starts_with("Tensor("), "{}", debug);
        let longer = Bytes::from(vec![fill; bytes.len() + 1]);
        prop_assert!(Tensor::new(dtype, shape, longer).is_err());
    }

    #[test]
    fn elements_come_back_bit_for_bit(elements in prop::collection::vec(any::<u64>(), 0..100), shift in any::<bool>()) {
        let tensor = Tensor::from_slice([elements.len()], &elements).unwrap();
        let bytes = tensor.bytes().unwrap();
        let bytes = if shift { misaligned(bytes) } else { bytes.clone() };
        let floats = Tensor::new(DType::Float64, [elements.len()], bytes).unwrap();
        let read: Vec<u64> = floats.to_vec::<f64>().unwrap().into_iter().map(f64::to_bits).collect();
        prop_assert_eq!(read, elements);
    }
}

//! From items to metadata.

use kvpipe::tensor::{DType, MAX_DIMS, Shape, Tensor};
use kvpipe::wire::Metadata;
use kvpipe::wire::metadata::TensorMetadata;

use crate::message::tensor;

#[test]
fn the_metadata_of_none_is_none_without_a_payload() {
    assert_eq!(Metadata::of(&None), Metadata::None);
    assert_eq!(Metadata::of(&None).payload_bytes(), 0);
}

#[test]
fn the_metadata_of_a_tensor_is_what_its_dtype_and_shape_give() {
    for &dtype in DType::ALL {
        let expected = tensor(dtype, &[3, 5]);
        let payload = vec![0; expected.payload_bytes()];
        let item = Some(Tensor::new(dtype, [3, 5], payload.into()).unwrap());
        assert_eq!(Metadata::of(&item), expected, "{dtype}");
    }
}

#[test]
fn the_longest_metadata_is_that_of_the_most_dimensions() {
    assert_eq!(tensor(DType::UInt8, &[1; MAX_DIMS]).encode().len(), Metadata::MAX_BYTES);
}

#[test]
fn metadata_of_a_payload_that_can_not_exist_is_not_made() {
    let shape = Shape::new(&[isize::MAX as usize]).unwrap();
    assert!(TensorMetadata::new(DType::UInt8, shape).is_ok());
    assert!(TensorMetadata::new(DType::Int16, shape).is_err());
}

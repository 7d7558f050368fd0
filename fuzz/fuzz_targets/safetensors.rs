//! Files of tensors, also by the `safetensors` crate, which must not accept less.

#![no_main]

use bytes::Bytes;
use kvpipe::tensor::safetensors::decode;
use kvpipe_fuzz::within;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

/// Beside the file. A tensor takes some hundred bytes, and some dozen in a header.
const BYTES_PER_BYTE: usize = 64;
const BYTES: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let file = Bytes::copy_from_slice(bytes);
    let Ok(tensors) = within(BYTES + BYTES_PER_BYTE * bytes.len(), || decode(&file)) else { return };
    let theirs = SafeTensors::deserialize(bytes).expect("what we accept is valid");
    assert_eq!(tensors.len(), theirs.len());
    for (name, tensor) in &tensors {
        let view = theirs.tensor(name).expect("it is there");
        assert_eq!(tensor.bytes().expect("it is in host memory"), view.data(), "{name:?}");
        let mut shape = tensor.shape().dims().to_vec();
        match tensor.dtype().safetensors_name() {
            Some(dtype) => assert_eq!(dtype, view.dtype().to_string()),
            // Pairs here, single values there.
            None => *shape.last_mut().expect("no scalar has a pair") *= 2,
        }
        assert_eq!(shape, view.shape(), "{name:?}");
    }
    // Every byte behind the header belongs to one of them.
    let total: usize = tensors.iter().map(|(_, tensor)| tensor.byte_len()).sum();
    let header = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    assert_eq!(size_of::<u64>() + header + total, bytes.len());
});

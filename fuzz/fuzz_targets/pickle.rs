//! Pickles of everything that vLLM sends.

#![no_main]

use bytes::Bytes;
use kvpipe::wire::Object;
use kvpipe::wire::pickle::{Limits, WORKING_BYTES_MAX, decode, decode_metadata, decode_tensor, encode};
use kvpipe_fuzz::within;
use libfuzzer_sys::fuzz_target;

const TENSOR_BYTES: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let message = Bytes::copy_from_slice(bytes);
    let mut limits = Limits::default();
    limits.tensor_bytes = TENSOR_BYTES;
    // Beside its working memory a decoder may ask for a text or the copy of a tensor.
    let limit_bytes = WORKING_BYTES_MAX + bytes.len() + TENSOR_BYTES;
    let decoded = within(limit_bytes, || decode(&message, &limits));

    if let Ok(metadata) = within(WORKING_BYTES_MAX, || decode_metadata(&message, &limits)) {
        assert_eq!(decoded, Ok(Object::Metadata(metadata)), "two decoders disagree");
    }
    if let Ok(pickled) = within(WORKING_BYTES_MAX, || decode_tensor(&message, &limits)) {
        let mut copy = vec![0; pickled.metadata().payload_bytes()];
        pickled.copy_to(&mut copy).expect("the buffer has the right length");
        let tensor = pickled.into_tensor().expect("there is memory");
        assert_eq!(tensor.bytes().expect("it is in host memory"), &copy, "two copies disagree");
        assert_eq!(decoded, Ok(Object::Tensor(tensor)), "two decoders disagree");
    }

    // What means something can be written again, unless torch could not load it.
    if let Ok(object) = decoded
        && let Ok(again) = encode(&object)
    {
        assert_eq!(decode(&again, &limits), Ok(object), "it does not survive");
    }
});

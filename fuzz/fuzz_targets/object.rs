//! Objects of a native group.

#![no_main]

use bytes::Bytes;
use kvpipe::wire::Object;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(object) = Object::decode(&bytes) {
        let again = object.encode().expect("what was decoded is in host memory");
        assert_eq!(again, bytes, "{object:?} has another encoding");
    }
});

//! Metadata of an item.

#![no_main]

use kvpipe::wire::Metadata;
use kvpipe_fuzz::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check(bytes, Metadata::decode, Metadata::encode_into, 0));

//! Each end of an edge by itself, with a peer that says anything.

#![no_main]

use kvpipe::transport::fuzzing::session_hostile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: &[u8]| session_hostile(steps));

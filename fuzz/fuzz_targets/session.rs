//! Both ends of an edge over connections that break at any point, are delayed, and are let in late.

#![no_main]

use kvpipe::transport::fuzzing::session;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: &[u8]| session(steps));

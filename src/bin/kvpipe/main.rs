//! The kvpipe command line.
fn main() {}

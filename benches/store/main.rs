//! The store: its server, the pipe over it, and barriers, each beside a limit in the same run.
//!
//! | part | measures | beside |
//! |---|---|---|
//! | `server` | exchanges a second of 1, 8 and 64 clients | a server that only reads and writes the same bytes; PyTorch's servers |
//! | `pipe` | bytes a second between two processes | the TCP transport, a bare socket, a pipe that does what vLLM's does on a CPU |
//! | `barrier` | requests and time a rank, 2 to 256 ranks | |
//!
//! `cargo bench --bench store -- server pipe` runs these two parts only. What needs PyTorch is skipped
//! unless `KVPIPE_TORCH_PYTHON` names a Python that has it.
//!
//! Ways are measured in turns, so that a machine that is busy for a while hits all of them; a ratio is
//! the median of the turns' ratios, with the least and the greatest behind it.

#![allow(missing_docs, reason = "a benchmark")]

mod bare;
mod barrier;
mod pipe;
mod process;
mod server;
mod turns;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("echo") => return bare::serve(),
        Some("receive") => return pipe::receive(&arguments[1..]),
        _ => {}
    }
    for (name, measure) in
        [("server", server::measure as fn()), ("pipe", pipe::measure), ("barrier", barrier::measure)]
    {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == name) {
            measure();
        }
    }
}

//! Acceptance on a real GPU: `cargo test --release --test gpu -- --nocapture`. Without one each test says
//! why it is skipped, and passes.

mod conformance;
mod device;
mod nccl;

use std::sync::Arc;

use kvpipe::Error;
use kvpipe::device::{CudaDevice, Device};

/// The first GPU, or None, and why, where there is none.
fn gpu() -> Option<Arc<dyn Device>> {
    match CudaDevice::open(0) {
        Ok(device) => Some(device),
        Err(error @ Error::Unavailable { .. }) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

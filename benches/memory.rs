//! Items per second through a whole pipe in one process: sender, two queues, wire, receiver.
//!
//! Nothing is copied, so the size of an item shows only where it meets the budget.

#![allow(missing_docs, reason = "a benchmark")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvpipe::transport::memory;
use kvpipe::{Item, Pipe, PipeConfig, Tensor};
use tokio::runtime::{Builder, Runtime};

const BATCH: u64 = 10_000;

/// Sends on one task and receives on another.
fn move_all(runtime: &Runtime, sender: &Pipe, receiver: &Pipe, item: &Item) {
    let (sender, item) = (sender.clone(), item.clone());
    let sending = runtime.spawn(async move {
        for _ in 0..BATCH {
            sender.send(item.clone()).await.expect("the peer takes everything");
        }
    });
    runtime.block_on(async {
        for _ in 0..BATCH {
            receiver.recv().await.expect("the peer sends everything");
        }
        sending.await.expect("the sender has no reason to panic");
    });
}

fn memory(criterion: &mut Criterion) {
    let one = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let two = Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime");
    let tensor = Some(Tensor::from_vec([64 << 10], vec![7_u8; 64 << 10]).expect("a tensor"));
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::Elements(BATCH));
    for (threads, runtime) in [("one_thread", &one), ("two_threads", &two)] {
        for (name, item) in [("none", None), ("tensor_64KiB", tensor.clone())] {
            let (outgoing, incoming) = memory::edge(memory::Script::new());
            let config = PipeConfig::default().with_buffer_bytes(64 << 20);
            let (sender, send_driver) = Pipe::send_only(outgoing, config.clone());
            let (receiver, receive_driver) = Pipe::receive_only(incoming, config);
            let _drivers = (runtime.spawn(send_driver), runtime.spawn(receive_driver));
            group.bench_function(format!("{name}/{threads}"), |bencher| {
                bencher.iter(|| move_all(runtime, &sender, &receiver, &item));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = memory
}
criterion_main!(benches);

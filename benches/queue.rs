//! Items per second through a sender and its queue, into a transport that takes and settles at once.

#![allow(missing_docs, reason = "a benchmark")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvpipe::transport::{Outbox, Outgoing};
use kvpipe::{Item, Link, Pipe, PipeConfig, Result, Tensor};
use tokio::runtime::{Builder, Runtime};

/// Takes items and settles them in batches, as a wire that acknowledges would.
struct Sink;

impl Outgoing for Sink {
    fn link(&self) -> Link {
        Link::new(0, 1)
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        while let Some((mut last, _)) = items.next().await? {
            while let Some((sequence, _)) = items.try_next() {
                last = sequence;
            }
            items.settle(last + 1);
        }
        Ok(())
    }
}

const BATCH: u64 = 10_000;

fn send_all(runtime: &Runtime, pipe: &Pipe, item: &Item) {
    runtime.block_on(async {
        for _ in 0..BATCH {
            pipe.send(item.clone()).await.expect("the sink takes everything");
        }
        pipe.flush().await.expect("the sink settles everything");
    });
}

fn queue(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let tensor = Some(Tensor::from_vec([1024], vec![7_u8; 1024]).expect("a tensor"));
    let cases = [
        // The budget never runs out, and runs out at every eighth item.
        ("none", None, 1 << 30),
        ("tensor_1KiB", tensor.clone(), 1 << 30),
        ("tensor_1KiB_tight_budget", tensor, 8 << 10),
    ];
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(BATCH));
    for (name, item, budget) in cases {
        let (pipe, driver) = Pipe::send_only(Sink, PipeConfig::default().with_buffer_bytes(budget));
        let _driver = runtime.spawn(driver);
        group.bench_function(name, |bencher| bencher.iter(|| send_all(&runtime, &pipe, &item)));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = queue
}
criterion_main!(benches);

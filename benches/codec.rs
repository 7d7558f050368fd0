//! What a header costs: an item's frame and its metadata, there and back.

#![allow(missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use kvpipe::wire::Metadata;
use kvpipe::wire::frame::{Frame, Reply, frame_in};
use kvpipe::{DType, Shape};

fn metadata() -> Metadata {
    // Keys of one layer of Llama 3 8B for 2048 tokens.
    let shape = Shape::new(&[2048, 8, 128]).expect("a shape");
    let tensor = kvpipe::wire::metadata::TensorMetadata::new(DType::BFloat16, shape);
    Metadata::Tensor(tensor.expect("4 MiB fit"))
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    let metadata = metadata();
    let mut bytes = Vec::with_capacity(Metadata::MAX_BYTES);
    group.bench_function("metadata/encode", |bencher| {
        bencher.iter(|| {
            bytes.clear();
            black_box(&metadata).encode_into(&mut bytes);
        });
    });
    group.bench_function("metadata/decode", |bencher| {
        bencher.iter(|| Metadata::decode(black_box(&bytes)).expect("it was encoded"));
    });

    let frame = Frame::Item { sequence: 7, metadata };
    let mut bytes = Vec::with_capacity(256);
    group.bench_function("item_frame/encode", |bencher| {
        bencher.iter(|| {
            bytes.clear();
            black_box(&frame).encode_into(&mut bytes);
        });
    });
    group.bench_function("item_frame/decode", |bencher| {
        bencher.iter(|| {
            let bytes = black_box(&bytes);
            let body = frame_in(bytes).expect("a length").expect("all of it");
            Frame::decode(&bytes[body]).expect("it was encoded")
        });
    });

    let reply = Reply::Acknowledge { upto: 8 };
    let mut bytes = Vec::with_capacity(256);
    group.bench_function("acknowledgement/encode_and_decode", |bencher| {
        bencher.iter(|| {
            bytes.clear();
            black_box(&reply).encode_into(&mut bytes);
            let body = frame_in(&bytes).expect("a length").expect("all of it");
            Reply::decode(&bytes[body]).expect("it was encoded")
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = codec
}
criterion_main!(benches);

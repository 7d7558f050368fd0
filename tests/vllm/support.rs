//! Our ranks, and what they send and receive, described as Python does it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::net::TokioNet;
use kvpipe::store::Limits;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::tensor::BufferPool;
use kvpipe::transport::Transport;
use kvpipe::transport::store::VllmTransport;
use kvpipe::wire::{Metadata, Object};
use kvpipe::{DType, Item, Pipe, PipeConfig, Shape, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::python::PYTHON_WITHIN;

/// Far beyond what anything here takes; reached only by a defect.
pub(crate) const LONG: Duration = Duration::from_secs(120);

pub(crate) type TcpGroup = StatelessProcessGroup<TcpStore<TokioNet>>;

fn config() -> GroupConfig {
    GroupConfig { wire: WireMode::Vllm, timeout: PYTHON_WITHIN, ..GroupConfig::default() }
}

/// The store of our rank 0.
pub(crate) async fn server() -> TcpStoreServer {
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.unwrap()
}

/// Our rank 0, which serves the store.
pub(crate) async fn rank_0(server: TcpStoreServer, world_size: usize) -> TcpGroup {
    TcpGroup::serve(TokioNet, server, world_size, config()).await.unwrap()
}

/// Our rank, where Python's rank 0 serves the store.
pub(crate) async fn other_rank(port: u16, rank: usize, world_size: usize) -> TcpGroup {
    TcpGroup::create(TokioNet, "127.0.0.1", port, rank, world_size, config()).await.unwrap()
}

/// A pipe to a rank in Python.
pub(crate) struct Ours {
    pub(crate) pipe: Pipe,
    group: Arc<TcpGroup>,
    driver: JoinHandle<()>,
}

impl Ours {
    pub(crate) async fn meet(group: TcpGroup) -> Self {
        let group = Arc::new(group);
        let transport = VllmTransport::meet(Arc::clone(&group), BufferPool::new(64 << 20)).await.unwrap();
        let (outgoing, incoming) = transport.split();
        let (pipe, driver) = Pipe::new(outgoing, incoming, PipeConfig::default());
        Self { pipe, group, driver: tokio::spawn(driver) }
    }

    pub(crate) async fn send_all(&self, items: &[Item]) {
        for item in items {
            self.pipe.send(item.clone()).await.unwrap();
        }
    }

    /// The next items, described.
    pub(crate) async fn receive(&self, count: usize) -> Vec<Value> {
        let mut received = Vec::new();
        while received.len() < count {
            received.push(described(&self.pipe.recv().await.unwrap()));
        }
        received
    }

    /// Closes the pipe, then leaves the group, as late as a rank may whose process is the store's server.
    pub(crate) async fn close(self) {
        self.pipe.close().await.unwrap();
        self.driver.await.unwrap();
        Arc::into_inner(self.group).unwrap().close(LONG).await.unwrap();
    }
}

pub(crate) fn described(item: &Item) -> Value {
    let Some(tensor) = item else { return Value::Null };
    let sha256 = hex::encode(Sha256::digest(tensor.bytes().unwrap()));
    json!({ "dtype": tensor.dtype().name(), "shape": tensor.shape().dims(), "sha256": sha256 })
}

pub(crate) fn object(object: &Object) -> Value {
    match object {
        Object::None => Value::Null,
        Object::Text(text) => json!({ "text": text }),
        Object::Tensor(tensor) => described(&Some(tensor.clone())),
        Object::UniqueId(id) => json!({ "id": hex::encode(id.0) }),
        Object::Metadata(Metadata::None) => json!({ "metadata": null }),
        Object::Metadata(Metadata::Tensor(tensor)) => {
            json!({ "metadata": { "dtype": tensor.dtype().name(), "shape": tensor.shape().dims() } })
        }
        other => panic!("python has no {other:?}"),
    }
}

/// Those that torch can load again.
pub(crate) const LOADABLE: [DType; 12] = [
    DType::UInt8,
    DType::Int8,
    DType::Int16,
    DType::Int32,
    DType::Int64,
    DType::Float16,
    DType::BFloat16,
    DType::Float32,
    DType::Float64,
    DType::Complex64,
    DType::Complex128,
    DType::Bool,
];

pub(crate) fn tensor(dtype: DType, dims: &[usize]) -> Tensor {
    let length = Shape::new(dims).unwrap().byte_len(dtype).unwrap();
    // A bool is 0 or 1.
    let modulus = if dtype == DType::Bool { 2 } else { 251 };
    let bytes: Vec<u8> = (0..length).map(|index| (index % modulus) as u8).collect();
    Tensor::new(dtype, dims, bytes.into()).unwrap()
}

/// Tensors of every kind, with Nones between them.
pub(crate) fn items() -> Vec<Item> {
    let mut items = vec![None];
    for dtype in LOADABLE {
        for dims in [&[][..], &[0], &[5], &[2, 3, 4]] {
            items.push(Some(tensor(dtype, dims)));
        }
        items.push(None);
    }
    items.extend([Some(tensor(DType::UInt8, &[70_000])), None, None]);
    // A signal pipe's.
    items.extend((0..3).map(|signal: i64| Some(Tensor::from_slice([1], &[signal]).unwrap())));
    items.extend([Some(tensor(DType::BFloat16, &[5, 1 << 19])), None]);
    items
}

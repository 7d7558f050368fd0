//! With a Python that follows vLLM's `StatelessProcessGroup` (0.9 and later), either of us serving the
//! store, where `KVPIPE_TORCH_PYTHON` names a Python that has torch 2.5 or later. Elsewhere these tests
//! say so and pass.

use std::time::Duration;

use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::net::TokioNet;
use kvpipe::store::Limits;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::wire::{Metadata, Object};
use kvpipe::{DType, Tensor};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::support::{LONG, config, text};

type TcpGroup = StatelessProcessGroup<TcpStore<TokioNet>>;

/// Importing torch alone takes many seconds on a small machine.
const PYTHON_WITHIN: Duration = Duration::from_secs(300);

/// Python's loads are those of its own pickle module: what we encode must be what Python takes.
const RANK: &str = r#"
import pickle, sys, uuid
from datetime import timedelta
import torch
from torch.distributed import TCPStore

rank, port = int(sys.argv[1]), int(sys.argv[2])
peer = 1 - rank
store = TCPStore("127.0.0.1", port, world_size=2, is_master=rank == 0, use_libuv=False,
                 timeout=timedelta(seconds=120))
counts = {"sent": 0, "received": 0, "broadcast": 0, "heard": {0: 0, 1: 0}}

def send(value):
    store.set(f"send_to/{peer}/{counts['sent']}", pickle.dumps(value))
    counts["sent"] += 1

def receive():
    value = pickle.loads(store.get(f"send_to/{rank}/{counts['received']}"))
    counts["received"] += 1
    return value

def broadcast(value, source):
    if source == rank:
        store.set(f"broadcast_from/{source}/{counts['broadcast']}", pickle.dumps(value))
        counts["broadcast"] += 1
        return value
    value = pickle.loads(store.get(f"broadcast_from/{source}/{counts['heard'][source]}"))
    counts["heard"][source] += 1
    return value

def barrier():
    name = broadcast(f"barrier_{uuid.uuid4()}" if rank == 0 else None, 0)
    store.set(f"arrival_{name}_{rank}", b"1")
    for other in range(2):
        store.get(f"arrival_{name}_{other}")
    store.set(f"departure_{name}_{rank}", b"1")
    if rank == 0:
        for other in range(2):
            store.get(f"departure_{name}_{other}")
        for other in range(2):
            store.delete_key(f"arrival_{name}_{other}")
            store.delete_key(f"departure_{name}_{other}")

tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
metadata = {"dtype": torch.float16, "shape": torch.Size([2, 3])}
for turn in range(2):
    barrier()
    for value in [None, "from python", metadata, tensor]:
        send(value)
    assert receive() is None
    assert receive() == "from rust"
    assert receive() == metadata
    assert torch.equal(receive(), tensor)
    gathered = [broadcast("python" if source == rank else None, source) for source in range(2)]
    assert gathered[rank] == "python" and gathered[peer] == "rust", gathered
barrier()
"#;

fn python(rank: usize, port: u16) -> Option<Command> {
    let Some(python) = std::env::var_os("KVPIPE_TORCH_PYTHON") else {
        println!("skipped: KVPIPE_TORCH_PYTHON does not name a python with torch");
        return None;
    };
    let mut command = Command::new(python);
    command.args(["-c", RANK, &rank.to_string(), &port.to_string()]).kill_on_drop(true);
    Some(command)
}

fn patient() -> GroupConfig {
    GroupConfig { timeout: PYTHON_WITHIN, ..config(WireMode::Vllm) }
}

/// What the Python rank does, from the other side.
async fn follow_python(group: &TcpGroup) {
    let peer = 1 - group.rank();
    let tensor = Tensor::from_slice([2, 3], &[0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let half = Tensor::new(DType::Float16, [2, 3], vec![0; 12].into()).unwrap();
    let objects = |word| {
        let metadata = Object::Metadata(Metadata::of(&Some(half.clone())));
        [Object::None, text(word), metadata, Object::Tensor(tensor.clone())]
    };
    for _ in 0..2 {
        group.barrier().await.unwrap();
        for object in objects("from rust") {
            group.send_obj(&object, peer).await.unwrap();
        }
        for expected in objects("from python") {
            assert_eq!(group.recv_obj(peer).await.unwrap(), expected);
        }
        let gathered = group.all_gather_obj(&text("rust")).await.unwrap();
        assert_eq!((&gathered[peer], &gathered[group.rank()]), (&text("python"), &text("rust")));
    }
    group.barrier().await.unwrap();
}

#[tokio::test]
async fn a_python_rank_1_and_our_rank_0_that_serves_the_store() {
    let address = ([127, 0, 0, 1], 0).into();
    let server = TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.unwrap();
    let Some(mut python) = python(1, server.local_addr().port()) else { return };
    let ours = async {
        let group = TcpGroup::serve(TokioNet, server, 2, patient()).await.unwrap();
        follow_python(&group).await;
        group.close(LONG).await.unwrap();
    };
    let (status, ()) =
        tokio::time::timeout(PYTHON_WITHIN, async { tokio::join!(python.status(), ours) }).await.unwrap();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn a_python_rank_0_that_serves_the_store_and_our_rank_1() {
    // Nobody else is likely to take the port before torch does.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let Some(mut python) = python(0, port) else { return };
    let ours = async {
        let group = TcpGroup::create(TokioNet, "127.0.0.1", port, 1, 2, patient()).await.unwrap();
        follow_python(&group).await;
        group.close(LONG).await.unwrap();
    };
    let (status, ()) =
        tokio::time::timeout(PYTHON_WITHIN, async { tokio::join!(python.status(), ours) }).await.unwrap();
    assert!(status.unwrap().success());
}

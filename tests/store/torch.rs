//! Against PyTorch itself, both ways, where `KVPIPE_TORCH_PYTHON` names a Python that has torch 2.5 or
//! later. Elsewhere these tests say so and pass.

use std::process::Stdio;
use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::store::tcp::TcpStore;
use kvpipe::store::{PrefixStore, Store};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::{LONG, connect, listener, options, server};

fn python() -> Option<Command> {
    let Some(python) = std::env::var_os("KVPIPE_TORCH_PYTHON") else {
        println!("skipped: KVPIPE_TORCH_PYTHON does not name a python with torch");
        return None;
    };
    let mut command = Command::new(python);
    command.kill_on_drop(true);
    Some(command)
}

/// Importing torch alone takes many seconds on a small machine.
const PYTHON_WITHIN: Duration = Duration::from_secs(300);

const CLIENT: &str = r#"
import sys
from datetime import timedelta
from torch.distributed import TCPStore, PrefixStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, world_size=2,
                 timeout=timedelta(seconds=60), wait_for_workers=True)
store.set("from_torch", b"\x00\xff")
assert store.get("from_rust") == b"from rust"
assert store.add("n", 5) == 5
assert store.add("n", -7) == -2
assert store.get("n") == b"-2"
assert store.check(["n"]) and not store.check(["n", "never"])
assert store.delete_key("n") and not store.delete_key("n")
PrefixStore("pre", store).set("k", b"prefixed")
try:
    store.wait(["never"], timedelta(milliseconds=100))
except Exception as error:
    assert "never" in str(error), error
else:
    raise AssertionError("the wait returned")
store.set("empty", b"")
assert store.get("empty") == b""
large = bytes(8 * 1024 * 1024)
store.set("large", large)
assert store.get("large") == large
store.set("done", b"1")
"#;

#[tokio::test]
async fn pytorchs_client_works_on_our_server() {
    let Some(mut python) = python() else { return };
    let server = server().await;
    let store = connect(server.local_addr()).await;
    store.join(LONG).await.unwrap();
    let port = server.local_addr().port().to_string();
    let running = python.args(["-c", CLIENT, &port]).status();
    let driving = async {
        store.wait_for_workers(2, PYTHON_WITHIN).await.unwrap();
        store.set("from_rust", "from rust".into(), LONG).await.unwrap();
        assert_eq!(&store.get("from_torch", LONG).await.unwrap()[..], [0, 255]);
        store.wait(&["done"], PYTHON_WITHIN).await.unwrap();
        assert_eq!(store.get("pre/k", LONG).await.unwrap(), "prefixed");
    };
    let (status, ()) = tokio::time::timeout(PYTHON_WITHIN, async { tokio::join!(running, driving) })
        .await
        .expect("torch's client hangs");
    assert!(status.unwrap().success());
}

const SERVER: &str = r#"
import sys
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[2]), is_master=True, world_size=2,
                 use_libuv=sys.argv[1] == "libuv", timeout=timedelta(seconds=60), wait_for_workers=True)
assert store.get("from_rust") == b"from rust"
store.set("from_torch", b"\x00\xff")
sys.stdin.readline()
"#;

#[tokio::test]
async fn our_client_works_on_pytorchs_classic_server() {
    on_pytorchs_server("classic").await;
}

#[tokio::test]
async fn our_client_works_on_pytorchs_libuv_server() {
    on_pytorchs_server("libuv").await;
}

async fn on_pytorchs_server(backend: &str) {
    let Some(mut python) = python() else { return };
    // Nobody else is likely to take the port before torch does; PyTorch can't tell us a port of its own
    // while it waits for us.
    let (listener, address) = listener().await;
    drop(listener);
    let port = address.port().to_string();
    let mut torch = python.args(["-c", SERVER, backend, &port]).stdin(Stdio::piped()).spawn().unwrap();

    let mut options = options();
    options.timeout = PYTHON_WITHIN;
    let store = TcpStore::connect(TokioNet, "127.0.0.1", address.port(), options).await.unwrap();
    store.join(LONG).await.unwrap();
    store.wait_for_workers(2, LONG).await.unwrap();
    let (got, set) =
        tokio::join!(store.get("from_torch", LONG), store.set("from_rust", "from rust".into(), LONG));
    set.unwrap();
    assert_eq!(&got.unwrap()[..], [0, 255]);
    assert_eq!(store.add("n", 5, LONG).await.unwrap(), 5);
    assert_eq!(store.add("n", -7, LONG).await.unwrap(), -2);
    assert_eq!(store.get("n", LONG).await.unwrap(), "-2");
    assert!(store.check(&["n"], LONG).await.unwrap());
    assert!(!store.check(&["n", "never"], LONG).await.unwrap());
    store.get("never", Duration::from_millis(50)).await.unwrap_err();
    assert!(store.delete("n", LONG).await.unwrap());
    assert!(!store.delete("n", LONG).await.unwrap());
    PrefixStore::new("pre", store.clone()).set("k", "v".into(), LONG).await.unwrap();
    assert_eq!(store.get("pre/k", LONG).await.unwrap(), "v");

    torch.stdin.take().unwrap().write_all(b"done\n").await.unwrap();
    let status = tokio::time::timeout(PYTHON_WITHIN, torch.wait()).await.expect("torch hangs");
    assert!(status.unwrap().success());
}

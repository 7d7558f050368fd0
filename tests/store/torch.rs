//! Against PyTorch itself, both ways, where `KVPIPE_TORCH_PYTHON` names a Python that has torch 2.5 or
//! later. Elsewhere these tests say so and pass.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use kvpipe::net::TokioNet;
use kvpipe::store::Store;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::python::{PYTHON_WITHIN, python};
use crate::suite::{World, basics, limits, queues, values};
use crate::support::{LONG, connect, connect_with, in_time, server};

/// Runs `script` with the port of `server` and the `rank` as its arguments.
async fn succeeds(mut python: Command, script: &str, server: &TcpStoreServer, rank: usize) {
    let arguments = [server.local_addr().port().to_string(), rank.to_string()];
    let running = python.arg("-c").arg(script).args(arguments).status();
    let status = tokio::time::timeout(PYTHON_WITHIN, running).await.expect("torch hangs");
    assert!(status.unwrap().success());
}

const CLIENT: &str = r#"
import sys
from datetime import timedelta
from torch.distributed import TCPStore, PrefixStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, world_size=2,
                 timeout=timedelta(seconds=60), wait_for_workers=True)

def use(store, wire_prefix):
    """Every operation that torch 2.8 has."""
    store.set("k", b"\x00\xff")
    assert store.get("k") == b"\x00\xff"
    store.set("empty", b"")
    assert store.get("empty") == b""
    assert store.add("n", 5) == 5
    assert store.add("n", -7) == -2
    assert store.get("n") == b"-2"
    assert store.check(["n", "k"]) and not store.check(["n", "never"])
    store.wait(["n", "k"])
    assert store.delete_key("n") and not store.delete_key("n")
    store.append("log", b"one ")
    store.append("log", b"two")
    assert store.get("log") == b"one two"
    store.multi_set(["m1", "m2"], [b"1", bytes(100_000)])
    assert store.multi_get(["m2", "m1"]) == [bytes(100_000), b"1"]
    assert store.compare_set("c", "", "v1") == b"v1"
    assert store.compare_set("c", "v1", "v2") == b"v2"
    assert store.compare_set("c", "v1", "v3") == b"v2"
    assert store.compare_set("missing", "x", "y") == b"x" and not store.check(["missing"])
    store.queue_push("q", b"a")
    store.queue_push("q", b"b")
    assert store.queue_len("q") == 2 and store.check(["q"])
    assert store.queue_pop("q") == b"a" and store.queue_pop("q", False) == b"b"
    assert store.queue_len("q") == 0 and not store.check(["q"])
    for pops in (False, True):
        try:
            store.set_timeout(timedelta(milliseconds=50))
            store.queue_pop("q", pops)
        except Exception:
            store.set_timeout(timedelta(seconds=60))
        else:
            raise AssertionError("popped from an empty queue")

use(store, "")
before = store.num_keys()
prefixed = PrefixStore("pre", store)
use(prefixed, "pre/")
assert prefixed.num_keys() == store.num_keys() == before + 6, (before, store.num_keys())
assert store.get("pre/k") == b"\x00\xff"
use(PrefixStore("outer", PrefixStore("inner", store)), "inner/outer/")
assert store.check(["inner/outer/k"])
large = bytes(range(256)) * (256 * 1024)
store.set("large", large)
assert store.get("large") == large
store.set("done", b"1")
"#;

#[tokio::test]
async fn pytorchs_client_uses_every_operation_on_our_server() {
    let Some(python) = python() else { return };
    let server = server().await;
    let store = connect(server.local_addr()).await;
    store.join(LONG).await.unwrap();
    let driving = async {
        store.wait_for_workers(2, PYTHON_WITHIN).await.unwrap();
        store.wait(&["done"], PYTHON_WITHIN).await.unwrap();
        assert_eq!(store.get("pre/log", LONG).await.unwrap(), "one two");
        assert_eq!(store.get("large", LONG).await.unwrap().len(), 64 << 20);
        // Python's are in a namespace that a list shows, queues are not.
        let keys = store.list_keys(LONG).await.unwrap();
        assert!(keys.contains(&"inner/outer/m2".to_owned()) && !keys.contains(&"q".to_owned()), "{keys:?}");
    };
    tokio::join!(succeeds(python, CLIENT, &server, 0), driving);
    assert_eq!(server.stats().refused, 0);
}

const TIMEOUTS: &str = r#"
import sys, time
from datetime import timedelta
from torch.distributed import TCPStore
soon = timedelta(milliseconds=100)
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=soon)
def times_out(what, wait):
    began = time.monotonic()
    try:
        wait()
    except Exception as error:
        assert "never" in str(error) or "timeout" in str(error).lower(), error
    else:
        raise AssertionError(what + " returned")
    assert time.monotonic() - began < 30, what
    # The connection is as good as before.
    assert store.add("alive", 0) == 0
times_out("wait", lambda: store.wait(["never"], soon))
times_out("get", lambda: store.get("never"))
times_out("multi_get", lambda: store.multi_get(["alive", "never"]))
times_out("queue_pop", lambda: store.queue_pop("never"))
store.set_timeout(timedelta(seconds=60))
store.set("waiting", b"1")
store.wait(["from_rust"])
assert store.queue_pop("queue_from_rust") == b"v"
"#;

#[tokio::test]
async fn pytorchs_client_times_out_and_goes_on() {
    let Some(python) = python() else { return };
    let server = server().await;
    let store = connect(server.local_addr()).await;
    let driving = async {
        store.wait(&["waiting"], PYTHON_WITHIN).await.unwrap();
        // A wait that was not cancelled would make the next one on its connection a violation.
        assert_eq!(server.stats().refused, 0);
        store.compare_set("from_rust", "".into(), "v".into(), LONG).await.unwrap();
        store.queue_push("queue_from_rust", "v".into(), LONG).await.unwrap();
    };
    tokio::join!(succeeds(python, TIMEOUTS, &server, 0), driving);
}

const MANY_CLIENTS: &str = r#"
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from torch.distributed import TCPStore
CLIENTS, ROUNDS = 16, 50
def work(client):
    store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=timedelta(seconds=60))
    for round in range(ROUNDS):
        store.set(f"{round}/{client}", bytes([client]) * 1000)
        values = store.multi_get([f"{round}/{other}" for other in range(CLIENTS)])
        assert values == [bytes([other]) * 1000 for other in range(CLIENTS)]
        if store.add(f"{round}/done", 1) == CLIENTS:
            store.set(f"{round}/all", b"")
        store.wait([f"{round}/all"])
        store.queue_push("q", bytes([client]))
        assert len(store.queue_pop("q")) == 1
    return True
with ThreadPoolExecutor(CLIENTS) as pool:
    assert all(pool.map(work, range(CLIENTS)))
"#;

#[tokio::test]
async fn sixteen_of_pytorchs_clients_at_once_meet_in_our_server() {
    let Some(python) = python() else { return };
    let server = server().await;
    succeeds(python, MANY_CLIENTS, &server, 0).await;
    let stats = server.stats();
    assert_eq!((stats.refused, stats.queued, stats.waiting), (0, 0, 0));
    // Of each round 16 values, a counter and a signal.
    assert_eq!(stats.keys, 50 * 18);
}

const GLOO: &str = r#"
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
rank = int(sys.argv[2])
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, world_size=2,
                      timeout=timedelta(seconds=120), wait_for_workers=False)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
tensor = torch.arange(1000, dtype=torch.float32) * (rank + 1)
dist.all_reduce(tensor)
assert torch.equal(tensor, torch.arange(1000, dtype=torch.float32) * 3)
objects = [None, None]
dist.all_gather_object(objects, {"rank": rank})
assert objects == [{"rank": 0}, {"rank": 1}]
dist.barrier()
dist.destroy_process_group()
"#;

#[tokio::test]
async fn two_processes_of_gloo_meet_in_our_server_and_reduce() {
    let (Some(zero), Some(one)) = (python(), python()) else { return };
    let server = server().await;
    tokio::join!(succeeds(zero, GLOO, &server, 0), succeeds(one, GLOO, &server, 1));
    assert_eq!(server.stats().refused, 0);
}

const SERVERS: &str = r#"
import sys
from datetime import timedelta
from torch.distributed import TCPStore
servers = []
for backend in sys.stdin:
    servers.append(TCPStore("127.0.0.1", 0, is_master=True, use_libuv=backend.strip() == "libuv",
                            timeout=timedelta(seconds=60), wait_for_workers=False))
    print(servers[-1].port, flush=True)
"#;

/// A process of PyTorch that starts as many servers as are asked for.
struct TorchServers {
    backend: &'static str,
    _process: Child,
    orders: ChildStdin,
    ports: Lines<BufReader<ChildStdout>>,
}

impl TorchServers {
    fn start(mut python: Command, backend: &'static str) -> Self {
        let piped = python.args(["-c", SERVERS]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = piped.spawn().unwrap();
        let (orders, ports) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { backend, _process: process, orders, ports: BufReader::new(ports).lines() }
    }

    /// Where a new, empty server is.
    async fn address(&mut self) -> SocketAddr {
        self.orders.write_all(format!("{}\n", self.backend).as_bytes()).await.unwrap();
        let line = tokio::time::timeout(PYTHON_WITHIN, self.ports.next_line()).await.expect("torch hangs");
        let port = line.unwrap().expect("torch has ended").parse().unwrap();
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
    }

    async fn world(&mut self) -> World<TcpStore<TokioNet>> {
        let address = self.address().await;
        World {
            a: connect_with(address, limits()).await,
            b: connect_with(address, limits()).await,
            _server: None,
        }
    }
}

/// The suite, each scenario with our client on a new server of PyTorch's.
macro_rules! on_pytorchs {
    ($servers:ident: $($scenario:path)*) => {
        $(
            println!("{} server: {}", $servers.backend, stringify!($scenario));
            in_time($scenario($servers.world().await)).await;
        )*
    };
}

/// What both of PyTorch's servers have. Not here: what torch 2.8 does not have (list_keys, barrier), or
/// what its servers do otherwise: they add to `12abc` and wrap around, bound no appended value, and see
/// compare_set differently when it comes to waking.
async fn the_suite_on(servers: &mut TorchServers) {
    on_pytorchs!(servers:
        basics::a_value_comes_back_as_it_was_set
        basics::a_second_set_replaces_the_first
        basics::get_waits_for_the_key
        basics::get_times_out_naming_the_key_and_how_long
        basics::many_gets_of_one_key_all_wake
        basics::add_counts_from_zero_and_stores_decimal_text
        basics::concurrent_adds_all_count
        basics::add_wakes_a_waiter
        basics::check_is_true_only_for_all_keys
        basics::wait_returns_once_every_key_has_come_even_if_one_is_gone_again
        basics::wait_for_nothing_or_for_what_is_there_returns
        basics::wait_times_out_naming_its_keys
        basics::delete_says_whether_the_key_was_there
        basics::a_dropped_get_leaves_the_store_usable
        basics::a_key_over_the_limit_is_the_callers_mistake
        basics::a_value_over_the_limit_is_the_callers_mistake_and_the_limit_itself_is_not
        basics::the_longest_timeout_is_accepted
        values::append_puts_behind_and_makes_a_key
        values::compare_set_stores_only_over_what_was_expected
        values::compare_set_of_a_missing_key_answers_what_was_expected_and_stores_nothing
        values::multi_get_waits_for_all_and_keeps_their_order
        values::multi_get_of_nothing_is_nothing
        values::multi_set_stores_all_and_the_last_of_two
        values::multi_set_over_a_limit_is_the_callers_mistake_and_stores_nothing
    );
}

#[tokio::test]
async fn our_client_passes_the_suite_on_pytorchs_classic_server() {
    let Some(python) = python() else { return };
    let mut servers = TorchServers::start(python, "classic");
    the_suite_on(&mut servers).await;
    what_a_server_lacks_is_said(&mut servers, true).await;
}

#[tokio::test]
async fn our_client_passes_the_suite_on_pytorchs_libuv_server() {
    let Some(python) = python() else { return };
    let mut servers = TorchServers::start(python, "libuv");
    the_suite_on(&mut servers).await;
    on_pytorchs!(servers:
        queues::a_queue_is_first_in_first_out_and_no_key
        queues::queue_pop_waits_for_a_value
        queues::every_queued_value_comes_out_once_whoever_pops
        queues::a_queue_that_another_emptied_first_is_waited_for_again
        queues::wait_and_check_see_a_queue_that_is_not_empty
    );
    what_a_server_lacks_is_said(&mut servers, false).await;
}

/// Torch 2.8 has neither LIST_KEYS nor BARRIER, and its classic server no queues.
async fn what_a_server_lacks_is_said(servers: &mut TorchServers, queues: bool) {
    let World { a, .. } = servers.world().await;
    let mut errors = vec![
        ("LIST_KEYS", a.list_keys(LONG).await.err()),
        ("BARRIER", a.barrier("key", 1, LONG).await.err()),
    ];
    if queues {
        errors.push(("QUEUE_PUSH", a.queue_push("key", "v".into(), LONG).await.err()));
        errors.push(("QUEUE_POP", a.try_queue_pop("key", LONG).await.err()));
        errors.push(("QUEUE_LEN", a.queue_len("key", LONG).await.err()));
    }
    for (operation, error) in errors {
        // A newer torch has it.
        let Some(error) = error else { continue };
        let text = error.to_string();
        assert!(text.contains(operation) && text.contains("torch 2."), "{text}");
    }
    a.set("k", "v".into(), LONG).await.unwrap();
}

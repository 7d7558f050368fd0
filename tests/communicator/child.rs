//! A test in a process of its own, with the fakes in the places of CUDA and NCCL.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use kvpipe_fake_cuda::Live as LiveCuda;
use kvpipe_fake_nccl::Live as LiveNccl;

/// A test whose body runs with these switches of the fake NCCL, and of the fake CUDA. When it is done,
/// nothing may be left, and nothing may have been misused.
macro_rules! on_fakes {
    ($name:ident, $switches:expr, $body:expr) => {
        on_fakes!($name, $switches, "", $body);
    };
    ($name:ident, $switches:expr, $cuda_switches:expr, $body:expr) => {
        #[test]
        fn $name() {
            crate::child::run(module_path!(), stringify!($name), [$switches, $cuda_switches], $body);
        }
    };
}

/// Says that this process is a child of a test.
const CHILD: &str = "KVPIPE_TEST_COMMUNICATOR_CHILD";

/// A process that hangs is killed by then.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is still alive by then is left.
const GIVING_BACK: Duration = Duration::from_secs(60);

pub(crate) fn run(module: &str, name: &str, [switches, cuda_switches]: [&str; 2], body: impl AsyncFnOnce()) {
    let (_, module) = module.split_once("::").unwrap();
    let name = format!("{module}::{name}");
    if std::env::var_os(CHILD).as_deref() == Some(OsStr::new(&name)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.unwrap().block_on(async {
            tokio::time::timeout(PATIENCE, body()).await.expect("it hangs");
            nothing_is_left(switches).await;
        });
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture"])
        .env(CHILD, &name)
        .env("LD_LIBRARY_PATH", kvpipe_fake_cuda::library_folder().unwrap())
        .env("KVPIPE_NCCL_SO_PATH", kvpipe_fake_nccl::library().unwrap())
        .env("KVPIPE_FAKE_NCCL", switches)
        .env("KVPIPE_FAKE_CUDA", cuda_switches)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
}

/// Waits until all memory, streams, events and communicators are given back, which threads do.
pub(crate) async fn nothing_is_left(switches: &str) {
    let waiting = async {
        while cuda() != (LiveCuda { misuses: 0, ..LiveCuda::default() }) || nccl() != LiveNccl::default() {
            tokio::task::yield_now().await;
        }
    };
    // An abort that hangs keeps what it was to free.
    if switches.contains("hangs") || switches.contains("blocks") {
        assert_eq!((cuda().misuses, nccl().misuses), (0, 0));
        return;
    }
    let waited = tokio::time::timeout(GIVING_BACK, waiting).await;
    assert!(waited.is_ok(), "left: {:?}, {:?}", cuda(), nccl());
}

/// What is alive on the fake GPU of this process.
pub(crate) fn cuda() -> LiveCuda {
    let mut live = LiveCuda::default();
    // SAFETY: loaded already, and so declared by the fake.
    unsafe {
        let library = libloading::Library::new("libcuda.so.1").unwrap();
        let tell = library.get::<unsafe extern "C" fn(*mut LiveCuda)>("kvpipe_fake_cuda_live").unwrap();
        tell(&raw mut live);
    }
    live
}

/// What is alive in the fake NCCL of this process.
pub(crate) fn nccl() -> LiveNccl {
    let mut live = LiveNccl::default();
    let path = kvpipe_fake_nccl::library().unwrap();
    // SAFETY: loaded already, and so declared by the fake.
    unsafe {
        let library = libloading::Library::new(path).unwrap();
        let tell = library.get::<unsafe extern "C" fn(*mut LiveNccl)>("kvpipe_fake_nccl_live").unwrap();
        tell(&raw mut live);
    }
    live
}

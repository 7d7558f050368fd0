//! The dynamic library.

use std::ffi::c_int;

use kvpipe_fake_nccl::{library, without_symbols};

const SYMBOLS: [&str; 27] = [
    "ncclGetErrorString",
    "ncclGetLastError",
    "ncclGetVersion",
    "ncclGetUniqueId",
    "ncclCommInitRank",
    "ncclCommInitRankConfig",
    "ncclCommFinalize",
    "ncclCommDestroy",
    "ncclCommAbort",
    "ncclCommGetAsyncError",
    "ncclCommCount",
    "ncclCommUserRank",
    "ncclAllReduce",
    "ncclReduce",
    "ncclAllGather",
    "ncclReduceScatter",
    "ncclSend",
    "ncclRecv",
    "ncclBroadcast",
    "ncclGroupStart",
    "ncclGroupEnd",
    "ncclCommWindowRegister",
    "ncclCommWindowDeregister",
    "ncclMemAlloc",
    "ncclMemFree",
    "ncclCommRegister",
    "ncclCommDeregister",
];

fn missing(path: &std::path::Path) -> Vec<&'static str> {
    // SAFETY: the fake does nothing when it is loaded.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    // SAFETY: only looked up.
    let is_missing = |name: &str| unsafe { library.get::<unsafe extern "C" fn()>(name) }.is_err();
    SYMBOLS.into_iter().filter(|name| is_missing(name)).collect()
}

#[test]
fn it_has_all_functions() {
    assert_eq!(missing(&library().unwrap()), [""; 0]);
}

#[test]
fn an_old_one_lacks_some_and_works() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("libnccl.so.2");
    let gone = ["ncclCommWindowRegister", "ncclCommWindowDeregister", "ncclMemAlloc"];
    without_symbols(&library().unwrap(), &gone, &old).unwrap();
    assert_eq!(missing(&old), gone);
    // SAFETY: as above.
    let library = unsafe { libloading::Library::new(&old) }.unwrap();
    // SAFETY: the function's type.
    let version =
        unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("ncclGetVersion") }.unwrap();
    let mut found = 0;
    // SAFETY: a place for a number.
    assert_eq!((unsafe { version(&mut found) }, found), (0, 22703));
}

#[test]
fn a_symbol_that_is_not_there_can_not_be_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("old.so");
    assert!(without_symbols(&library().unwrap(), &["ncclFoo"], &into).is_err());
    assert!(without_symbols(&std::env::current_exe().unwrap().with_extension("d"), &[], &into).is_err());
    assert!(!into.exists());
}

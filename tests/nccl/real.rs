//! The real library, on a machine without a GPU: one that `KVPIPE_REAL_NCCL_SO` names, or the one of an
//! active Python environment. Elsewhere these tests say so and pass.
//!
//! What it answers was tried with 2.27.3 and with 2.32.3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use kvpipe::nccl::{Config, Library, Progress, RawComm, ResultCode, UniqueId, Version};
use kvpipe::{Error, Result};

use crate::process::{answer, ask, is_asked};

/// The library, if there is one.
fn real() -> Option<Arc<Library>> {
    let file = real_file();
    if file.is_none() {
        println!(
            "skipped: KVPIPE_REAL_NCCL_SO names no libnccl.so.2, and no active Python environment has one"
        );
    }
    file.map(|file| Library::load(Some(&file)).unwrap())
}

fn real_file() -> Option<PathBuf> {
    if let Some(file) = std::env::var_os("KVPIPE_REAL_NCCL_SO") {
        return Some(file.into());
    }
    let lib = PathBuf::from(std::env::var_os("VIRTUAL_ENV")?).join("lib");
    let pythons = std::fs::read_dir(lib).ok()?.map(|entry| entry.unwrap().path());
    pythons.map(|python| python.join("site-packages/nvidia/nccl/lib/libnccl.so.2")).find(|file| file.exists())
}

/// The library, if there is one and no GPU, which would make it answer otherwise.
fn real_without_gpu() -> Option<Arc<Library>> {
    if Path::new("/dev/nvidiactl").exists() {
        println!("skipped: this machine has a GPU, and these are the answers of one that has none");
        return None;
    }
    real()
}

#[test]
fn the_real_library_has_a_version_and_every_function() {
    let Some(library) = real() else { return };
    assert!(library.version() >= Version(22703), "{library:?}");
    assert_eq!(library.missing(), []);
    assert!(library.path().ends_with("libnccl.so.2"), "{library:?}");
    println!("{library:?}");
}

#[test]
fn the_real_library_says_something_to_every_code() {
    let Some(library) = real() else { return };
    let known: Vec<String> = (0..8).map(|code| library.error_text(ResultCode(code))).collect();
    assert_eq!(known[0], "no error");
    for (index, text) in known.iter().enumerate() {
        assert!(!text.is_empty() && !known[..index].contains(text), "{known:?}");
    }
    for code in [9, 99, -1] {
        assert_eq!(library.error_text(ResultCode(code)), "unknown result code");
    }
}

#[test]
fn the_real_library_opens_and_closes_groups() {
    let Some(library) = real() else { return };
    let functions = library.functions();
    // SAFETY: nothing is in the group.
    let (started, ended) = unsafe { ((functions.group_start)(), (functions.group_end)()) };
    assert_eq!(library.check("ncclGroupStart", started).unwrap(), Progress::Done);
    assert_eq!(library.check("ncclGroupEnd", ended).unwrap(), Progress::Done);
}

/// The address in an id of the real library: behind a magic number, a `sockaddr`.
fn address_in(id: &UniqueId) -> IpAddr {
    let family = u16::from_ne_bytes([id.0[8], id.0[9]]);
    match family {
        2 => Ipv4Addr::from(<[u8; 4]>::try_from(&id.0[12..16]).unwrap()).into(),
        10 => Ipv6Addr::from(<[u8; 16]>::try_from(&id.0[16..32]).unwrap()).into(),
        family => panic!("address family {family}"),
    }
}

/// What a process with these variables gets as an id.
fn address_with(variables: &[(&str, &str)]) -> String {
    let library = ("KVPIPE_NCCL_SO_PATH", real_file().unwrap());
    let mut all = vec![(library.0, library.1.as_path())];
    all.extend(variables.iter().map(|(name, value)| (*name, Path::new(*value))));
    ask("real::a_process_that_makes_an_id", &all)
}

/// Not a test of its own: what the others start.
#[test]
fn a_process_that_makes_an_id() {
    if !is_asked() {
        return;
    }
    match Library::load(None).and_then(|library| library.unique_id()) {
        Ok(id) => answer(address_in(&id)),
        Err(error) => answer(error),
    }
}

#[test]
fn two_ids_of_the_real_library_differ() {
    let Some(library) = real() else { return };
    assert_ne!(library.unique_id().unwrap(), library.unique_id().unwrap());
}

#[test]
fn an_id_of_the_real_library_is_at_the_interface_that_was_chosen() {
    let Some(_library) = real() else { return };
    assert_eq!(address_with(&[("NCCL_SOCKET_IFNAME", "lo")]), "127.0.0.1");
    assert_eq!(address_with(&[("NCCL_COMM_ID", "127.0.0.1:23456")]), "127.0.0.1");
}

#[test]
fn the_real_library_makes_no_id_without_an_interface() {
    let Some(_library) = real() else { return };
    let error = address_with(&[("NCCL_SOCKET_IFNAME", "=none")]);
    assert!(error.starts_with("ncclGetUniqueId: invalid usage"), "{error}");
    assert!(error.contains("(NCCL code 5): Bootstrap : no socket interface found"), "{error}");
}

/// The doctor knows NCCL's rule, and this asks NCCL.
#[cfg(feature = "cli")]
#[test]
fn the_doctor_marks_the_interface_that_the_real_library_takes() {
    let Some(_library) = real() else { return };
    for variables in [
        &[][..],
        &[("NCCL_SOCKET_IFNAME", "lo")],
        &[("NCCL_SOCKET_IFNAME", "^eth")],
        &[("NCCL_SOCKET_IFNAME", "=lo")],
        &[("NCCL_SOCKET_FAMILY", "AF_INET")],
        &[("NCCL_SOCKET_FAMILY", "AF_INET6")],
    ] {
        let marked = marked_by_the_doctor(variables);
        match address_with(variables).parse::<IpAddr>() {
            Ok(address) => assert_eq!(marked.first(), Some(&address.to_string()), "{variables:?}"),
            Err(_) => assert_eq!(marked, [""; 0], "{variables:?}"),
        }
    }
}

/// The addresses that a doctor with these variables says that NCCL takes.
#[cfg(feature = "cli")]
fn marked_by_the_doctor(variables: &[(&str, &str)]) -> Vec<String> {
    let mut doctor = std::process::Command::new(env!("CARGO_BIN_EXE_kvpipe"));
    for name in ["NCCL_SOCKET_IFNAME", "NCCL_SOCKET_FAMILY", "NCCL_COMM_ID"] {
        doctor.env_remove(name);
    }
    let output = doctor.args(["doctor", "--json"]).envs(variables.iter().copied()).output().unwrap();
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = line["interfaces"].as_array().unwrap().iter().filter(|one| one["nccl"] == true);
    all.map(|one| one["address"].as_str().unwrap().to_owned()).collect()
}

/// Asserts that there is no GPU to do it on, in NCCL's words.
#[track_caller]
fn assert_no_gpu(result: Result<Progress>) {
    let error = result.unwrap_err();
    let Error::Nccl { code, text, detail, .. } = &error else { panic!("{error:?}") };
    assert_eq!(
        (ResultCode(*code), text.as_str()),
        (ResultCode::UNHANDLED_CUDA_ERROR, "unhandled cuda error (run with NCCL_DEBUG=INFO for details)")
    );
    assert!(detail.contains("CUDA driver version is insufficient for CUDA runtime version"), "{error}");
}

#[test]
fn the_real_library_makes_no_communicator_without_a_gpu() {
    let Some(library) = real_without_gpu() else { return };
    let id = library.unique_id().unwrap();
    let functions = library.functions();
    let mut comm = RawComm::NULL;
    // SAFETY: a rank alone waits for nobody, and it fails before it begins.
    let code = unsafe { (functions.comm_init_rank)(&mut comm, 1, id, 0) };
    assert_no_gpu(library.check("ncclCommInitRank", code));
    assert!(comm.is_null());
    let mut config = Config::NONBLOCKING;
    // SAFETY: as above.
    let code = unsafe { (functions.comm_init_rank_config)(&mut comm, 1, id, 0, &mut config) };
    assert_no_gpu(library.check("ncclCommInitRankConfig", code));
    assert!(comm.is_null());
}

#[test]
fn the_real_library_allocates_nothing_without_a_gpu() {
    let Some(library) = real_without_gpu() else { return };
    let mut address = ptr::null_mut();
    // SAFETY: it fails.
    let code = unsafe { (library.functions().mem_alloc.unwrap())(&mut address, 4096) };
    assert_no_gpu(library.check("ncclMemAlloc", code));
}

#[test]
fn the_real_library_takes_the_abort_of_no_communicator_and_no_question_to_it() {
    let Some(library) = real() else { return };
    // SAFETY: there is nothing to abort.
    let code = unsafe { (library.functions().comm_abort)(RawComm::NULL) };
    assert_eq!(library.check("ncclCommAbort", code).unwrap(), Progress::Done);
    let mut state = ResultCode(77);
    // SAFETY: it looks at the null, and refuses.
    let code = unsafe { (library.functions().comm_get_async_error)(RawComm::NULL, &mut state) };
    let error = library.check("ncclCommGetAsyncError", code).unwrap_err();
    assert!(matches!(error, Error::Nccl { code: 4, .. }), "{error:?}");
    assert_eq!(state, ResultCode(77));
}

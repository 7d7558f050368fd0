//! Where a library is looked for, from the outside.

use std::fs;
use std::path::Path;

use kvpipe::nccl::Library;
use tempfile::tempdir;

use crate::built;
use crate::process::{answer, ask, is_asked};

/// What [`Library::load`] finds with these variables.
fn found(variables: &[(&str, &Path)]) -> String {
    ask("search::a_process_that_looks", variables)
}

/// Not a test of its own: what the others start.
#[test]
fn a_process_that_looks() {
    if !is_asked() {
        return;
    }
    match Library::load(None) {
        Ok(library) => answer(format_args!("{} {}", library.version(), library.path())),
        Err(error) => answer(error),
    }
}

/// As it is found: its version and its path.
fn named(version: &str, file: &Path) -> String {
    format!("{version} {}", file.display())
}

/// A file that is no library, which ends the system's search for its name: it goes no further to the
/// NCCL that this machine may have.
fn broken(folder: &Path, name: &str) {
    fs::write(folder.join(name), "this is no library, and it is longer than the header of any one is")
        .unwrap();
}

#[test]
fn kvpipes_variable_comes_before_vllms_and_both_before_the_system() {
    let folder = tempdir().unwrap();
    let ours = built::library(&folder.path().join("ours.so"), 22701, &[]);
    let vllms = built::library(&folder.path().join("vllms.so"), 22702, &[]);
    let systems = built::library(&folder.path().join("libnccl.so.2"), 22703, &[]);
    let system = ("LD_LIBRARY_PATH", folder.path());
    let vllms_too = ("VLLM_NCCL_SO_PATH", vllms.as_path());
    assert_eq!(found(&[("KVPIPE_NCCL_SO_PATH", &ours), vllms_too, system]), named("2.27.1", &ours));
    assert_eq!(found(&[vllms_too, system]), named("2.27.2", &vllms));
    assert_eq!(found(&[("VLLM_NCCL_SO_PATH", Path::new("")), system]), named("2.27.3", &systems));
}

#[test]
fn the_system_is_asked_for_three_names_until_one_works() {
    let folder = tempdir().unwrap();
    let system = [("LD_LIBRARY_PATH", folder.path())];
    broken(folder.path(), "libnccl.so.2");
    broken(folder.path(), "libnccl.so");
    let rccl = built::library(&folder.path().join("librccl.so.1"), 22401, &[]);
    assert_eq!(found(&system), named("2.24.1", &rccl));
    let link = built::library(&folder.path().join("libnccl.so"), 22402, &[]);
    assert_eq!(found(&system), named("2.24.2", &link));
    let nccl = built::library(&folder.path().join("libnccl.so.2"), 22403, &[]);
    assert_eq!(found(&system), named("2.24.3", &nccl));
}

#[test]
fn an_active_python_environment_comes_last() {
    let folder = tempdir().unwrap();
    for name in ["libnccl.so.2", "libnccl.so", "librccl.so.1"] {
        broken(folder.path(), name);
    }
    let venv = folder.path().join("venv");
    let wheels = venv.join("lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2");
    built::library(&wheels, 22305, &[]);
    let system = ("LD_LIBRARY_PATH", folder.path());
    assert_eq!(found(&[("VIRTUAL_ENV", &venv), system]), named("2.23.5", &wheels));
    assert_eq!(found(&[("CONDA_PREFIX", &venv), system]), named("2.23.5", &wheels));
    let rccl = built::library(&folder.path().join("librccl.so.1"), 22406, &[]);
    assert_eq!(found(&[("VIRTUAL_ENV", &venv), system]), named("2.24.6", &rccl));
}

#[test]
fn a_library_that_is_named_and_fails_is_not_replaced_by_another() {
    let folder = tempdir().unwrap();
    built::library(&folder.path().join("libnccl.so.2"), 22703, &[]);
    let nowhere = Path::new("/nowhere/nccl.so");
    assert_eq!(
        found(&[("KVPIPE_NCCL_SO_PATH", nowhere), ("LD_LIBRARY_PATH", folder.path())]),
        "NCCL is not available: /nowhere/nccl.so (from KVPIPE_NCCL_SO_PATH): \
         cannot open shared object file: No such file or directory"
    );
}

#[test]
fn the_error_lists_all_that_was_tried_and_why_each_failed() {
    let folder = tempdir().unwrap();
    broken(folder.path(), "libnccl.so.2");
    fs::write(folder.path().join("libnccl.so"), "").unwrap();
    built::library(&folder.path().join("librccl.so.1"), 21003, &["ncclCommFinalize"]);
    let root = folder.path().display();
    let rest = format!(
        "libnccl.so.2: {root}/libnccl.so.2: invalid ELF header; \
         libnccl.so: {root}/libnccl.so: file too short; \
         librccl.so.1: it lacks ncclCommFinalize, which NCCL has from 2.14 on; its version is 2.10.3"
    );
    let system = ("LD_LIBRARY_PATH", folder.path());
    assert_eq!(
        found(&[system]),
        format!("NCCL is not available: {rest}; no Python environment is active (VIRTUAL_ENV, CONDA_PREFIX)")
    );
    assert_eq!(
        found(&[system, ("VIRTUAL_ENV", folder.path())]),
        format!(
            "NCCL is not available: {rest}; {root} (from VIRTUAL_ENV): no \
             site-packages/nvidia/nccl/lib/libnccl.so.2 in its lib"
        )
    );
}

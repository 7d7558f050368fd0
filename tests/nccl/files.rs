//! Files: what is loaded, and what is refused with which words.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kvpipe::Error;
use kvpipe::nccl::{Library, Missing, Version};
use tempfile::tempdir;

use crate::built;

/// Why `file` is not loaded, without the file's name.
#[track_caller]
fn refused(file: &Path) -> String {
    let error = Library::load(Some(file)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let text = error.to_string();
    let start = format!("NCCL is not available: {}: ", file.display());
    text.strip_prefix(&start).unwrap_or_else(|| panic!("{start:?} does not begin {text:?}")).to_owned()
}

#[test]
fn a_library_with_everything_is_loaded_with_its_version_and_its_path() {
    let folder = tempdir().unwrap();
    let file = built::library(&folder.path().join("any.so"), 22703, &[]);
    let library = Library::load(Some(&file)).unwrap();
    assert_eq!(library.version(), Version(22703));
    assert_eq!(library.path(), file.to_str().unwrap());
    assert_eq!(library.missing(), []);
    assert_eq!(format!("{library:?}"), format!("Library({} 2.27.3)", file.display()));
}

#[test]
fn one_file_is_one_library_by_whatever_path() {
    let folder = tempdir().unwrap();
    let file = built::library(&folder.path().join("one.so"), 22703, &[]);
    let other = built::library(&folder.path().join("other.so"), 22703, &[]);
    let link = folder.path().join("link.so");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let library = Library::load(Some(&file)).unwrap();
    assert!(Arc::ptr_eq(&library, &Library::load(Some(&file)).unwrap()));
    assert!(Arc::ptr_eq(&library, &Library::load(Some(&link)).unwrap()));
    assert!(!Arc::ptr_eq(&library, &Library::load(Some(&other)).unwrap()));
}

#[test]
fn a_library_of_2_18_is_loaded_and_lacks_what_came_later() {
    let folder = tempdir().unwrap();
    let file = built::library(&folder.path().join("old.so"), 21805, &built::SYMBOLS[21..]);
    let library = Library::load(Some(&file)).unwrap();
    assert_eq!(library.version().to_string(), "2.18.5");
    let missing = |symbol, needs_version| Missing { symbol, needs_version };
    assert_eq!(
        library.missing(),
        [
            missing("ncclMemAlloc", "2.19"),
            missing("ncclMemFree", "2.19"),
            missing("ncclCommRegister", "2.19"),
            missing("ncclCommDeregister", "2.19"),
            missing("ncclCommWindowRegister", "2.27"),
            missing("ncclCommWindowDeregister", "2.27"),
        ]
    );
}

#[test]
fn each_function_that_is_needed_is_needed() {
    let folder = tempdir().unwrap();
    for (index, symbol) in built::SYMBOLS[..21].iter().enumerate() {
        let file = built::library(&folder.path().join(format!("{index}.so")), 21903, &[symbol]);
        let reason = refused(&file);
        assert!(reason.starts_with(&format!("it lacks {symbol}, which NCCL has from 2.14 on")), "{reason}");
        assert_eq!(reason.ends_with("; its version is 2.19.3"), *symbol != "ncclGetVersion", "{reason}");
    }
}

#[test]
fn a_library_that_is_too_old_is_refused_with_its_version_and_all_that_it_lacks() {
    let folder = tempdir().unwrap();
    let lacking = ["ncclCommInitRankConfig", "ncclCommFinalize", "ncclGetLastError"];
    let file = built::library(&folder.path().join("older.so"), 2708, &lacking);
    let reason = refused(&file);
    assert_eq!(
        reason,
        "it lacks ncclGetLastError, ncclCommInitRankConfig, ncclCommFinalize, which NCCL has from 2.14 \
         on; its version is 2.7.8"
    );
}

#[test]
fn a_library_that_does_not_tell_its_version_is_refused_with_its_code() {
    let folder = tempdir().unwrap();
    let file = built::build(&folder.path().join("mute.so"), "return 3;", &[]);
    let reason = refused(&file);
    assert_eq!(reason, "ncclGetVersion: built for a test (NCCL code 3): built for a test");
}

#[test]
fn a_missing_file_is_said_to_be_missing() {
    let reason = refused(Path::new("/nowhere/libnccl.so.2"));
    assert_eq!(reason, "cannot open shared object file: No such file or directory");
}

#[test]
fn a_file_that_is_no_library_is_said_to_be_none() {
    let folder = tempdir().unwrap();
    let text = folder.path().join("text.so");
    fs::write(&text, "this is no library, however long it is, and it is longer than any header").unwrap();
    assert_eq!(refused(&text), "invalid ELF header");
    let empty = folder.path().join("empty.so");
    fs::write(&empty, "").unwrap();
    assert_eq!(refused(&empty), "file too short");
    assert_eq!(refused(folder.path()), "cannot read file data: Is a directory");
}

#[test]
fn a_library_that_is_no_nccl_is_said_to_be_none() {
    let folder = tempdir().unwrap();
    let file = built::library(&folder.path().join("foreign.so"), 0, &built::SYMBOLS);
    let reason = refused(&file);
    assert!(reason.starts_with("it lacks ncclGetVersion, ncclGetErrorString, "), "{reason}");
    assert!(reason.ends_with("ncclGroupEnd, which NCCL has from 2.14 on"), "{reason}");
}

#[test]
fn a_path_that_can_be_none_is_refused() {
    // To dlopen an empty path is this program, which links a fake of NCCL perhaps.
    assert_eq!(refused(Path::new("")), "the path is empty");
    let text = refused(Path::new("a\0b"));
    assert_eq!(text, "interior zero element in parameter");
}

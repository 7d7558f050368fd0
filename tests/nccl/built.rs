//! Libraries built for a test, by the C compiler that Rust links with.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every function of nccl.h that kvpipe knows of; the last six are those that older libraries lack.
pub(crate) const SYMBOLS: [&str; 27] = [
    "ncclGetVersion",
    "ncclGetErrorString",
    "ncclGetLastError",
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
    "ncclBroadcast",
    "ncclSend",
    "ncclRecv",
    "ncclGroupStart",
    "ncclGroupEnd",
    "ncclMemAlloc",
    "ncclMemFree",
    "ncclCommRegister",
    "ncclCommDeregister",
    "ncclCommWindowRegister",
    "ncclCommWindowDeregister",
];

/// A library of that version and without those functions. What is left does nothing, successfully.
pub(crate) fn library(file: &Path, version: i32, without: &[&str]) -> PathBuf {
    build(file, &format!("*v = {version}; return 0;"), without)
}

/// The same, with that for the body of `ncclGetVersion(int *v)`.
pub(crate) fn build(file: &Path, get_version: &str, without: &[&str]) -> PathBuf {
    let mut source = String::new();
    for symbol in SYMBOLS.into_iter().filter(|symbol| !without.contains(symbol)) {
        match symbol {
            "ncclGetVersion" => writeln!(source, "int {symbol}(int *v) {{ {get_version} }}").unwrap(),
            "ncclGetErrorString" | "ncclGetLastError" => {
                writeln!(source, "const char *{symbol}(void) {{ return \"built for a test\"; }}").unwrap();
            }
            _ => writeln!(source, "int {symbol}(void) {{ return 0; }}").unwrap(),
        }
    }
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let source_file = file.with_extension("c");
    fs::write(&source_file, source).unwrap();
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(file).arg(&source_file).status().unwrap();
    assert!(status.success(), "cc: {status}");
    file.to_owned()
}

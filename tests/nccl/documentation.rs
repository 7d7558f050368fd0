//! The table in the module's documentation.

const MODULE: &str = include_str!("../../src/nccl/mod.rs");

/// Where the tests are that the table names.
const SOURCES: [&str; 5] = [
    include_str!("../../src/nccl/recorded.rs"),
    include_str!("codes.rs"),
    include_str!("files.rs"),
    include_str!("real.rs"),
    include_str!("table.rs"),
];

/// What vLLM's `NCCLLibrary` calls, 0.9 to 0.12.
const VLLMS: [&str; 16] = [
    "ncclGetErrorString",
    "ncclGetVersion",
    "ncclGetUniqueId",
    "ncclCommInitRank",
    "ncclAllReduce",
    "ncclReduce",
    "ncclAllGather",
    "ncclReduceScatter",
    "ncclSend",
    "ncclRecv",
    "ncclBroadcast",
    "ncclCommDestroy",
    "ncclGroupStart",
    "ncclGroupEnd",
    "ncclCommWindowRegister",
    "ncclCommWindowDeregister",
];

/// The table's rows below its head: function, method, test.
fn rows() -> Vec<[&'static str; 3]> {
    let rows = MODULE.lines().filter_map(|line| line.strip_prefix("//! | `nccl")).map(|row| {
        let cells: Vec<&str> =
            row.trim_end_matches(" |").split(" | ").map(|cell| cell.trim_matches('`')).collect();
        cells.try_into().unwrap_or_else(|cells| panic!("{cells:?}"))
    });
    rows.collect()
}

#[test]
fn every_function_of_vllms_library_has_a_row() {
    for function in VLLMS {
        let rows = rows().into_iter().filter(|[name, ..]| format!("nccl{name}") == function);
        assert_eq!(rows.count(), 1, "{function}");
    }
}

#[test]
fn every_row_names_a_test_that_there_is() {
    for [function, _, test] in rows() {
        let tests = format!("#[test]\nfn {test}() {{");
        assert!(SOURCES.iter().any(|source| source.contains(&tests)), "{function}: {test}");
    }
}

//! The README's table of what takes the place of what in vLLM.

#![allow(missing_docs, reason = "a test binary")]

use std::fs;
use std::path::Path;

const README: &str = include_str!("../README.md");

/// What has to have a row, by the words it begins with: `pynccl_pipe.py`, `pynccl_wrapper.py`, `pynccl.py`
/// and `utils.py` of vLLM 0.9 to 0.12, and what they have above them.
const VLLMS: [&str; 59] = [
    "KVPipeBase",
    "send_tensor",
    "recv_tensor",
    "close",
    "PyNcclPipe",
    "block_if_full",
    "BrokenPipeException",
    "METADATA_LENGTH",
    "METADATA_DTYPE",
    "MAX_TENSOR_DIMENSIONS",
    "KVTransferConfig",
    "NCCLLibrary",
    "find_nccl_library",
    "exported_functions",
    "NCCL_CHECK",
    "ncclGetErrorString",
    "ncclGetVersion",
    "ncclGetUniqueId",
    "unique_id_from_bytes",
    "ncclUniqueId",
    "ncclResult_t",
    "ncclDataTypeEnum",
    "ncclRedOpTypeEnum",
    "buffer_type",
    "PyNcclCommunicator",
    "available",
    "all_reduce",
    "all_gather",
    "all_gatherv",
    "reduce_scatter",
    "reduce_scatterv",
    "broadcast",
    "send",
    "recv",
    "group_start",
    "group_end",
    "register_comm_window",
    "deregister_comm_window",
    "StatelessProcessGroup",
    "create",
    "rank",
    "world_size",
    "store",
    "data_expiration_seconds",
    "send_obj",
    "recv_obj",
    "broadcast_obj",
    "all_gather_obj",
    "barrier",
    "expire_data",
    "ensure_divisibility",
    "divide",
    "split_tensor_along_last_dim",
    "get_pp_indices",
    "sched_yield",
    "USE_SCHED_YIELD",
    "init_gloo_process_group",
    "stateless_init_torch_distributed_process_group",
    "stateless_destroy_torch_distributed_process_group",
];

struct Row {
    vllms: &'static str,
    here: &'static str,
    test: &'static str,
}

fn rows() -> Vec<Row> {
    let section =
        README.split("\n## ").find(|section| section.starts_with("What corresponds to what in vLLM"));
    let lines = section.unwrap().lines().filter(|line| line.starts_with("| `"));
    let rows = lines.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [vllms, here, test] = cells[..] else { panic!("{line}") };
        Row { vllms, here, test }
    });
    // Without the heads of the tables.
    rows.filter(|row| row.test != "test").collect()
}

/// What stands in backticks, without what is in parentheses.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// All Rust files below a directory of this project, in one.
fn sources(directory: &Path, all: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// Whether there is a test of this name: a function with the attribute, or one that a macro makes.
fn is_test(name: &str, sources: &str) -> bool {
    let by_macro = sources.match_indices(name).any(|(at, _)| {
        let (before, after) = (sources[..at].trim_end(), &sources[at + name.len()..]);
        before.ends_with("on_fakes!(") && after.starts_with(',')
    });
    by_macro
        || sources.match_indices(&format!("fn {name}(")).any(|(at, _)| {
            let above = sources[..at].trim_end_matches("async ").trim_end();
            let attribute = above.rsplit('\n').next().unwrap_or_default().trim();
            attribute == "#[test]" || attribute.starts_with("#[tokio::test")
        })
}

#[test]
fn everything_of_vllms_has_a_row() {
    let rows = rows();
    let named: Vec<&str> = rows.iter().flat_map(|row| names(row.vllms)).collect();
    for name in VLLMS {
        assert!(named.contains(&name), "{name}");
    }
}

#[test]
fn every_row_names_a_test_that_there_is_or_says_why_there_is_nothing() {
    let mut all = String::new();
    for directory in ["src", "tests"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut all);
    }
    for Row { vllms, here, test } in rows() {
        let tests: Vec<&str> = names(test).collect();
        for test in &tests {
            assert!(is_test(test, &all), "{vllms}: {test}");
        }
        assert!(!tests.is_empty() || here.starts_with("deliberately without counterpart: "), "{vllms}");
    }
}

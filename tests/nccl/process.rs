//! Processes with an environment of their own, since that of this one belongs to all tests: this same
//! binary, told to run one test only.

use std::path::Path;
use std::process::Command;

/// Set in a process that was started by a test.
const STARTED: &str = "KVPIPE_TEST_STARTED";

/// What stands before its answer, whatever the harness prints.
const ANSWER: &str = "answer: ";

/// Runs `test` with `variables`, and without others that say where NCCL is or what it takes; gives its
/// [`answer`].
pub(crate) fn ask(test: &str, variables: &[(&str, &Path)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(STARTED, "1");
    for name in ["KVPIPE_NCCL_SO_PATH", "VLLM_NCCL_SO_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"]
    {
        command.env_remove(name);
    }
    for name in ["NCCL_SOCKET_IFNAME", "NCCL_SOCKET_FAMILY", "NCCL_COMM_ID"] {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, answer) = text.split_once(ANSWER).unwrap_or_else(|| panic!("no answer: {text}"));
    answer.lines().next().unwrap().to_owned()
}

/// Whether this process was started by [`ask`].
pub(crate) fn is_asked() -> bool {
    std::env::var_os(STARTED).is_some()
}

/// What [`ask`] is to give.
pub(crate) fn answer(text: impl std::fmt::Display) {
    println!("{ANSWER}{text}");
}

//! A Python that has torch, where `KVPIPE_TORCH_PYTHON` names one.

use std::time::Duration;

use tokio::process::Command;

/// Importing torch alone takes many seconds on a small machine.
pub(crate) const PYTHON_WITHIN: Duration = Duration::from_secs(300);

/// The Python, killed when its process is dropped. Without one, the test says so and passes.
pub(crate) fn python() -> Option<Command> {
    let Some(python) = std::env::var_os("KVPIPE_TORCH_PYTHON") else {
        println!("skipped: KVPIPE_TORCH_PYTHON does not name a python with torch");
        return None;
    };
    let mut command = Command::new(python);
    command.kill_on_drop(true);
    Some(command)
}

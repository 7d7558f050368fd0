//! The other contender: torch's gloo, in processes of the Python that [`VARIABLE`] names.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use std::{env, fmt};

use tokio::process::Command;
use tokio::time::timeout;

const VARIABLE: &str = "KVPIPE_TORCH_PYTHON";

/// What a rank runs.
const SCRIPT: &str = include_str!("gloo.py");

/// What has to succeed before any rank is started.
const IS_THERE: &str = "\
import torch, torch.distributed as dist
assert dist.is_available() and dist.is_gloo_available(), 'its torch has no gloo'
print(torch.__version__)";

/// Importing torch alone takes many seconds on a small machine.
const IMPORTED_WITHIN: Duration = Duration::from_secs(120);

/// A Python that has torch, with gloo.
#[derive(Clone, Debug)]
pub(super) struct Gloo {
    pub(super) python: PathBuf,
    /// The version of torch.
    torch: String,
}

impl Gloo {
    /// The one that the environment names.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn find() -> Result<Self, String> {
        let Some(python) = env::var_os(VARIABLE).map(PathBuf::from) else {
            return Err(format!("{VARIABLE} does not name a python with torch"));
        };
        let failed = |why: &dyn fmt::Display| format!("{VARIABLE}={}: {why}", python.display());
        let mut command = Command::new(&python);
        command.args(["-c", IS_THERE]).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(IMPORTED_WITHIN, command.output()).await;
        let output = output
            .map_err(|_| failed(&format_args!("torch is not imported in {} s", IMPORTED_WITHIN.as_secs())))?
            .map_err(|error| failed(&error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(&said.lines().next_back().unwrap_or("it fails and says nothing")));
        }
        let torch = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self { python, torch })
    }

    /// The command line of a rank, without Python itself.
    pub(super) fn arguments(rank: u16, ranks: u16, store: SocketAddr, patience: Duration) -> Vec<OsString> {
        let numbers = [rank.into(), ranks.into(), store.port().into(), patience.as_secs()];
        let mut line: Vec<OsString> = vec!["-c".into(), SCRIPT.into()];
        line.extend(numbers.map(|number: u64| number.to_string().into()));
        line
    }
}

impl fmt::Display for Gloo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gloo of torch {}", self.torch)
    }
}

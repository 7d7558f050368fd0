//! The host's memory, and the system's limits.

use std::fs;
use std::path::Path;

use kvpipe::PipeConfig;

use super::report::{Limit, Limits, Memory, Problem, Subject};

/// What this process and its container may use; None where the system has no `/proc`.
pub(super) fn memory(problems: &mut Vec<Problem>) -> Option<Memory> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let mut memory = Memory {
        total_bytes: kibibytes(&info, "MemTotal:")?,
        available_bytes: kibibytes(&info, "MemAvailable:")?,
    };
    if let (Some(limit), Some(used)) = (of_container("memory.max"), of_container("memory.current")) {
        memory.total_bytes = memory.total_bytes.min(limit);
        memory.available_bytes = memory.available_bytes.min(limit.saturating_sub(used));
    }
    let PipeConfig { budget_bytes, window_bytes, .. } = PipeConfig::default();
    if memory.available_bytes < (budget_bytes + window_bytes) as u64 {
        problems.push(Problem {
            subject: Subject::Memory,
            state: "low",
            what: "less is available than a pipe may hold, which is 1 GB for each direction".into(),
            costs: "a slow receiver can fill it, and the system ends who asks for more",
            remedy: "--buffer-size 256MiB",
        });
    }
    Some(memory)
}

fn kibibytes(info: &str, name: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// A number of the control group; None where there is no limit, or no control group.
fn of_container(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?.trim().parse().ok()
}

/// Below it, a busy store runs out.
const FILE_DESCRIPTORS_MIN: u64 = 1024;

/// What this process may have; None where nobody has told us how to ask.
pub(super) fn limits(problems: &mut Vec<Problem>) -> Option<Limits> {
    let limits = asked()?;
    if limits.file_descriptors.soft.is_some_and(|soft| soft < FILE_DESCRIPTORS_MIN) {
        problems.push(Problem {
            subject: Subject::FileDescriptors,
            state: "low",
            what: format!("{FILE_DESCRIPTORS_MIN} are usual"),
            costs: "a store takes fewer clients, and a rank fewer peers: each connection needs one",
            remedy: "ulimit -n 65536; LimitNOFILE= in a unit of systemd, --ulimit nofile=65536 for docker run",
        });
    }
    // Where each adapter has a folder.
    let infiniband =
        fs::read_dir("/sys/class/infiniband").is_ok_and(|mut adapters| adapters.next().is_some());
    if infiniband && limits.locked_bytes.soft.is_some() {
        problems.push(Problem {
            subject: Subject::LockedMemory,
            state: "low",
            what: "there is an InfiniBand adapter, and a limit".into(),
            costs: "NCCL locks the memory that such an adapter reads and writes, and fails where it may not",
            remedy: "ulimit -l unlimited; LimitMEMLOCK=infinity in a unit of systemd, --ulimit memlock=-1 for \
                     docker run",
        });
    }
    Some(limits)
}

#[cfg(target_os = "linux")]
fn asked() -> Option<Limits> {
    use rustix::process::{Resource, getrlimit};

    let limit = |resource| {
        let limit = getrlimit(resource);
        Limit { soft: limit.current, hard: limit.maximum }
    };
    Some(Limits { file_descriptors: limit(Resource::Nofile), locked_bytes: limit(Resource::Memlock) })
}

#[cfg(not(target_os = "linux"))]
fn asked() -> Option<Limits> {
    None
}

//! What the doctor has found: the JSON line, and what the screen is made of.

use std::net::IpAddr;

use serde::Serialize;

/// With `--json`, all of it on one line.
#[derive(Serialize)]
pub(super) struct Report {
    /// Our version.
    pub(super) kvpipe: &'static str,
    pub(super) default_job: Job,
    /// Null if none can be loaded.
    pub(super) nccl: Option<Nccl>,
    /// Null if the driver can't be used.
    pub(super) cuda: Option<Cuda>,
    /// Null where the system does not tell.
    pub(super) memory: Option<Memory>,
    pub(super) interfaces: Vec<Interface>,
    /// Null where the system does not tell.
    pub(super) limits: Option<Limits>,
    pub(super) problems: Vec<Problem>,
}

#[derive(Serialize)]
pub(super) struct Job {
    pub(super) command: String,
    pub(super) ok: bool,
}

#[derive(Serialize)]
pub(super) struct Nccl {
    pub(super) version: String,
    /// As `ncclGetVersion` has it.
    pub(super) version_code: i32,
    pub(super) path: String,
    pub(super) missing: Vec<MissingFunction>,
}

#[derive(Serialize)]
pub(super) struct MissingFunction {
    pub(super) symbol: &'static str,
    pub(super) needs_version: &'static str,
}

#[derive(Serialize)]
pub(super) struct Cuda {
    /// The newest CUDA that the driver is made for.
    pub(super) version: String,
    pub(super) devices: Vec<Gpu>,
}

#[derive(Serialize)]
pub(super) struct Gpu {
    /// As `--device` takes it.
    pub(super) device: String,
    pub(super) name: String,
    pub(super) compute_capability: String,
    pub(super) total_bytes: usize,
    /// Null if the device can't be opened.
    pub(super) free_bytes: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Memory {
    /// What this process may use, together with its container.
    pub(super) total_bytes: u64,
    pub(super) available_bytes: u64,
}

#[derive(Serialize)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) running: bool,
    /// Whether NCCL would take it.
    pub(super) nccl: bool,
}

#[derive(Serialize)]
pub(super) struct Limits {
    pub(super) file_descriptors: Limit,
    pub(super) locked_bytes: Limit,
}

#[derive(Clone, Copy, Serialize)]
pub(super) struct Limit {
    /// What counts; null for no limit.
    pub(super) soft: Option<u64>,
    /// How far a user may raise it; null for no limit.
    pub(super) hard: Option<u64>,
}

/// What a problem is with.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Subject {
    DefaultJob,
    Nccl,
    Cuda,
    Memory,
    Interfaces,
    FileDescriptors,
    LockedMemory,
}

/// What is missing, or not as it should be.
#[derive(Serialize)]
pub(super) struct Problem {
    pub(super) subject: Subject,
    /// In a word.
    pub(super) state: &'static str,
    pub(super) what: String,
    /// What can't be done, or not as well.
    pub(super) costs: &'static str,
    /// How to get it.
    pub(super) remedy: &'static str,
}

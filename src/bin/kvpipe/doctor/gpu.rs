//! NCCL and CUDA.

use kvpipe::Error;
use kvpipe::device::{CudaDevice, DeviceReport, DriverReport};
use kvpipe::nccl::Library;

use super::report::{Cuda, Gpu, MissingFunction, Nccl, Problem, Subject};

/// Loads the library that a pipe would load, and has it make an id, for which it needs no GPU but an
/// interface.
pub(super) fn nccl(problems: &mut Vec<Problem>) -> Option<Nccl> {
    let library = match Library::load(None) {
        Ok(library) => library,
        Err(error) => {
            problems.push(Problem {
                subject: Subject::Nccl,
                state: "missing",
                what: reason(error),
                costs: "--transport nccl, and vLLM's pipe on the device cuda; between GPUs, tensors travel \
                        over tcp and through host memory",
                remedy: "pip install nvidia-nccl-cu12 in the active Python environment (a torch for CUDA \
                         brings it along), or KVPIPE_NCCL_SO_PATH=/path/to/libnccl.so.2",
            });
            return None;
        }
    };
    let missing = library.missing();
    if !missing.is_empty() {
        let names = missing.iter().map(|one| format!("{} ({})", one.symbol, one.needs_version));
        problems.push(Problem {
            subject: Subject::Nccl,
            state: "old",
            what: format!("it lacks {}", names.collect::<Vec<_>>().join(", ")),
            costs: "memory that is registered with NCCL; all else works",
            remedy: "NCCL 2.27 or newer: pip install --upgrade nvidia-nccl-cu12",
        });
    }
    if let Err(error) = library.unique_id() {
        problems.push(Problem {
            subject: Subject::Nccl,
            state: "failed",
            what: error.to_string(),
            costs: "no communicator can begin here",
            remedy: "NCCL_SOCKET_IFNAME must name an interface that there is, or be unset",
        });
    }
    let missing = missing.into_iter();
    let missing = missing.map(|one| MissingFunction { symbol: one.symbol, needs_version: one.needs_version });
    Some(Nccl {
        version: library.version().to_string(),
        version_code: library.version().0,
        path: library.path().to_owned(),
        missing: missing.collect(),
    })
}

/// Asks the driver for its devices, and each device for its memory.
pub(super) fn cuda(problems: &mut Vec<Problem>) -> Option<Cuda> {
    let problem = |state, what, remedy| Problem {
        subject: Subject::Cuda,
        state,
        what,
        costs: "tensors on a GPU (--device cuda), and so --transport nccl",
        remedy,
    };
    let DriverReport { version, devices, .. } = match CudaDevice::probe() {
        Ok(report) => report,
        Err(error) => {
            problems.push(problem(
                "missing",
                reason(error),
                "the driver of this machine's NVIDIA GPU, 470 or newer; a container gets the host's with \
                 --gpus all",
            ));
            return None;
        }
    };
    if devices.is_empty() {
        problems.push(problem(
            "missing",
            "the driver sees no device".into(),
            "nvidia-smi shows what there is; CUDA_VISIBLE_DEVICES hides devices, a container's --gpus all \
             shows them",
        ));
    }
    let gpu = |(index, device): (usize, DeviceReport)| {
        let DeviceReport { location, name, total_bytes, compute_capability: (major, minor), .. } = device;
        let memory = CudaDevice::open(index).and_then(|device| device.memory());
        let memory = memory.map_err(|error| {
            let remedy = "nvidia-smi shows who uses it, and how";
            problems.push(problem("failed", format!("{location}: {error}"), remedy));
        });
        Gpu {
            device: location.to_string(),
            name,
            compute_capability: format!("{major}.{minor}"),
            total_bytes,
            free_bytes: memory.ok().map(|memory| memory.free),
        }
    };
    Some(Cuda { version: version.to_string(), devices: devices.into_iter().enumerate().map(gpu).collect() })
}

/// Without what it is that is not available, which stands in front anyway.
fn reason(error: Error) -> String {
    match error {
        Error::Unavailable { reason, .. } => reason,
        error => error.to_string(),
    }
}

//! GPUs and NCCL, for the transports that need them.

use std::path::Path;
use std::sync::Arc;
use std::{env, fmt};

use kvpipe::config::BufferDevice;
use kvpipe::device::{CudaDevice, Device, Location};
use kvpipe::nccl::Library;
use kvpipe::transport::nccl::{HandOut, NcclConfig};
use kvpipe::transport::tcp::TcpConfig;

use crate::failure::Failure;

/// The GPU of a rank, and the library that moves what is on it.
#[derive(Clone, Debug)]
pub(crate) struct Gpu {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) library: Arc<Library>,
}

impl Gpu {
    /// Opens the one and loads the other.
    pub(crate) fn open(location: Location, nccl: Option<&Path>) -> Result<Self, Failure> {
        let index = match location {
            Location::Cuda(index) => index,
            Location::Cpu => return Err(Failure::new("bug in kvpipe: a GPU is to be the cpu")),
        };
        let device = CudaDevice::open(index).map_err(missing)?;
        Ok(Self { device, library: library(nccl)? })
    }

    /// How items travel from and to it.
    pub(crate) fn config(&self, control: TcpConfig, hand_out: HandOut) -> NcclConfig {
        // Who does not want to wait so long for a peer does not want to wait longer for a payload.
        let transfer_timeout = control.connect_timeout;
        let (device, library) = (Arc::clone(&self.device), Arc::clone(&self.library));
        NcclConfig { control, hand_out, transfer_timeout, ..NcclConfig::new(device, library) }
    }
}

/// `cuda:0 (NVIDIA H100 80GB HBM3), NCCL 2.27.3 (libnccl.so.2)`
impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, library } = self;
        write!(f, "{} ({}), {}", device.location(), device.name(), Loaded(library))
    }
}

/// A library as a person wants to know it.
pub(crate) struct Loaded<'a>(pub(crate) &'a Library);

impl fmt::Display for Loaded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} ({})", self.0.version(), self.0.path())
    }
}

/// The library that is named, or the first that is found.
pub(crate) fn library(nccl: Option<&Path>) -> Result<Arc<Library>, Failure> {
    Library::load(nccl).map_err(missing)
}

/// The index of this process's GPU on its machine, if it is one of many.
pub(crate) fn local_rank() -> Result<usize, Failure> {
    const VARIABLE: &str = "LOCAL_RANK";
    let Some(value) = env::var_os(VARIABLE) else { return Ok(0) };
    value.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Failure::usage(format!("the environment variable {VARIABLE} is {value:?}, which is not a number"))
            .hint("--device cuda:N says which GPU it is")
    })
}

/// The GPUs of ranks that all run on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    /// The index of each rank's GPU.
    indices: Vec<usize>,
    /// The first one's.
    name: String,
}

impl Placement {
    /// Each rank on a GPU of its own if there are enough, and no other is asked for.
    pub(crate) fn of_ranks(ranks: usize, device: Option<BufferDevice>) -> Result<Self, Failure> {
        let devices = CudaDevice::probe().map_err(missing)?.devices;
        let indices: Vec<usize> = match device {
            Some(BufferDevice::CudaIndex(index)) => vec![index; ranks],
            _ => (0..ranks).map(|rank| rank % devices.len().max(1)).collect(),
        };
        let first = indices.first().copied().unwrap_or(0);
        let name = match devices.get(first) {
            Some(device) => device.name.clone(),
            // It says how many there are.
            None => CudaDevice::open(first).map_err(missing)?.name(),
        };
        Ok(Self { indices, name })
    }

    pub(crate) fn location(&self, rank: usize) -> Location {
        self.indices.get(rank).map_or(Location::Cpu, |index| Location::Cuda(*index))
    }

    /// NCCL refuses two ranks on one GPU, unless it takes them for ranks of different machines. Then they
    /// talk over the network.
    pub(crate) fn environment(&self, rank: usize) -> Vec<(&'static str, String)> {
        match self.is_shared() {
            true => vec![("NCCL_HOSTID", format!("kvpipe-rank-{rank}"))],
            false => Vec::new(),
        }
    }

    fn is_shared(&self) -> bool {
        (1..self.indices.len()).any(|rank| self.indices[..rank].contains(&self.indices[rank]))
    }
}

/// `each rank on a GPU of its own, cuda:0 to cuda:1 (NVIDIA H100 80GB HBM3)`
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) =
            (self.indices.iter().min().unwrap_or(&0), self.indices.iter().max().unwrap_or(&0));
        match (self.is_shared(), first == last) {
            (false, true) => write!(f, "on cuda:{first} ({})", self.name),
            (false, false) => {
                write!(f, "each rank on a GPU of its own, cuda:{first} to cuda:{last} ({})", self.name)
            }
            (true, true) => write!(f, "all ranks on cuda:{first} ({}), and so over the network", self.name),
            (true, false) => {
                write!(
                    f,
                    "several ranks on each of cuda:{first} to cuda:{last} ({}), and so over the network",
                    self.name
                )
            }
        }
    }
}

/// What a GPU needs is not there.
fn missing(error: kvpipe::Error) -> Failure {
    Failure::from(error).hint(
        "kvpipe doctor says what this machine has; tcp needs neither GPU nor NCCL (in a \
         kv-transfer-config: \"kv_buffer_device\":\"cpu\")",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(indices: &[usize]) -> (String, usize) {
        let placement = Placement { indices: indices.into(), name: "G".into() };
        (placement.to_string(), placement.environment(1).len())
    }

    #[test]
    fn ranks_that_share_a_gpu_are_told_apart_and_it_is_said() {
        assert_eq!(placed(&[0]), ("on cuda:0 (G)".into(), 0));
        assert_eq!(placed(&[0, 1]), ("each rank on a GPU of its own, cuda:0 to cuda:1 (G)".into(), 0));
        assert_eq!(placed(&[3, 3]), ("all ranks on cuda:3 (G), and so over the network".into(), 1));
        let shared = "several ranks on each of cuda:0 to cuda:1 (G), and so over the network";
        assert_eq!(placed(&[0, 1, 0]), (shared.into(), 1));
    }
}

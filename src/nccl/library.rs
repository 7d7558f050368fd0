//! An NCCL library: found, opened, and asked what it is.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int};
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use libloading::os::unix::{Library as Opened, RTLD_LOCAL, RTLD_NOW};

use super::codes::{Progress, ResultCode, Version};
use super::functions::{Functions, Missing, REQUIRED_VERSION, RawComm, find};
use super::search;
use crate::error::{Error, Result};
use crate::sync::Mutex;
use crate::wire::UniqueId;

/// An NCCL library. It stays loaded for as long as the process runs, because NCCL has threads of its own
/// in it.
pub struct Library {
    path: String,
    version: Version,
    pub(super) functions: Functions,
}

/// The libraries of this process, by path.
static LOADED: Mutex<BTreeMap<String, Arc<Library>>> = Mutex::new(BTreeMap::new());

impl Library {
    /// The library at `path`, or the first that is found and can be used:
    ///
    /// 1. the one that `KVPIPE_NCCL_SO_PATH` names, or `VLLM_NCCL_SO_PATH`, if they are set and not empty;
    /// 2. `libnccl.so.2`, `libnccl.so` or `librccl.so.1` where the system looks for libraries, which is
    ///    the one that PyTorch has loaded, if it has;
    /// 3. the one in the `nvidia/nccl/lib` of an active Python environment (`VIRTUAL_ENV`,
    ///    `CONDA_PREFIX`).
    ///
    /// Where one is named, by `path` or by a variable, no other is tried. A path without a slash is a
    /// name for the system's search. Loading the same file again gives the same library.
    ///
    /// # Contract
    /// The file must be what its name says: its code is run.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with all that was tried, and why each failed.
    pub fn load(path: Option<&Path>) -> Result<Arc<Self>> {
        let mut failed = Vec::new();
        for candidate in search::candidates(path, |name| std::env::var_os(name)) {
            let attempt = candidate.and_then(|candidate| {
                Self::open(&candidate.file).map_err(|reason| format!("{candidate}: {reason}"))
            });
            match attempt {
                Ok(library) => return Ok(library),
                Err(reason) => {
                    tracing::debug!("not used as NCCL: {reason}");
                    failed.push(reason);
                }
            }
        }
        Err(Error::Unavailable { what: "NCCL".into(), reason: failed.join("; ") })
    }

    /// A library whose functions are these, such as a test's own. `name` stands for its path.
    ///
    /// # Contract
    /// The functions must do what nccl.h says of them.
    ///
    /// # Errors
    /// [`Error::Nccl`] if it does not tell its version.
    pub fn from_functions(name: &str, functions: Functions) -> Result<Arc<Self>> {
        let mut library = Self { path: name.into(), version: Version(0), functions };
        let mut version: c_int = 0;
        // SAFETY: it writes one integer.
        let code = unsafe { (functions.get_version)(&mut version) };
        library.done("ncclGetVersion", code)?;
        library.version = Version(version);
        Ok(Arc::new(library))
    }

    /// The file that it was loaded from.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The functions that it lacks, because it is too old. Calling one is an [`Error::Unsupported`].
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        self.functions.missing()
    }

    /// Its functions.
    #[must_use]
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// A new id for a communicator, to be made by one rank and given to all. This process listens for them
    /// from now on, at an address that the id contains.
    ///
    /// # Errors
    /// [`Error::Nccl`], such as for a machine without a network interface that NCCL would take.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: it writes one id.
        let code = unsafe { (self.functions.get_unique_id)(&mut id) };
        self.done("ncclGetUniqueId", code)?;
        Ok(id)
    }

    /// What the library says to a code; it has an answer to every number.
    #[must_use]
    pub fn error_text(&self, code: ResultCode) -> String {
        // SAFETY: it takes any number and gives a text that is never freed.
        let text = unsafe { text((self.functions.get_error_string)(code), MESSAGE_BYTES) };
        text.unwrap_or_else(|| code.to_string())
    }

    /// What NCCL has to say to the last error of this process, if it has had one: all communicators and
    /// threads share that text.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        // SAFETY: it does not look at the communicator, and gives a buffer that is never freed.
        unsafe { text((self.functions.get_last_error)(RawComm::NULL), MESSAGE_BYTES) }
    }

    /// What the answer to `call` means.
    ///
    /// # Errors
    /// [`Error::Nccl`] for every code but [`SUCCESS`](ResultCode::SUCCESS) and
    /// [`IN_PROGRESS`](ResultCode::IN_PROGRESS), unknown ones included.
    pub fn check(&self, call: &'static str, code: ResultCode) -> Result<Progress> {
        match code {
            ResultCode::SUCCESS => Ok(Progress::Done),
            ResultCode::IN_PROGRESS => Ok(Progress::InProgress),
            _ => Err(self.failed(call, code, self.last_error().unwrap_or_default())),
        }
    }

    /// As [`check`](Self::check), of a call that has no business to be in progress.
    pub(super) fn done(&self, call: &'static str, code: ResultCode) -> Result<()> {
        match self.check(call, code)? {
            Progress::Done => Ok(()),
            Progress::InProgress => Err(self.failed(call, code, "this call can't be in progress".into())),
        }
    }

    pub(super) fn failed(&self, call: &'static str, code: ResultCode, detail: String) -> Error {
        Error::Nccl { call, code: code.0, text: self.error_text(code), detail }
    }

    /// One table a file: a second one would do no harm, but nobody could tell that it is the same.
    fn open(file: &Path) -> Result<Arc<Self>, String> {
        if file.as_os_str().is_empty() {
            // To dlopen that is this program.
            return Err("the path is empty".into());
        }
        // SAFETY: the contract of `load`.
        let opened = unsafe { Opened::open(Some(file), RTLD_NOW | RTLD_LOCAL) };
        let opened = opened.map_err(|error| chain(&error, file))?;
        // SAFETY: the contract of `load`.
        let functions = unsafe { Functions::of(&opened) }.map_err(|missing| too_old(&opened, &missing))?;
        let path = file_of(functions.get_version as *const () as usize)
            .unwrap_or_else(|| file.display().to_string());
        let mut loaded = LOADED.lock();
        if let Some(library) = loaded.get(&path) {
            return Ok(library.clone());
        }
        let library = Self::from_functions(&path, functions).map_err(|error| error.to_string())?;
        // Never closed: NCCL leaves threads behind.
        let _handle = opened.into_raw();
        loaded.insert(path, library.clone());
        Ok(library)
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library({} {})", self.path, self.version)
    }
}

/// The buffer for NCCL's last error is no longer than this (`ncclLastError` in its debug.cc).
const MESSAGE_BYTES: usize = 1024;

/// A copy of a C text, up to its first zero, or to `limit`; None for none, and for an empty one.
///
/// # Safety
/// `start` must be null, or point to a text that ends in a zero or is `limit` bytes long.
unsafe fn text(start: *const c_char, limit: usize) -> Option<String> {
    if start.is_null() {
        return None;
    }
    let mut bytes = Vec::new();
    for index in 0..limit {
        // SAFETY: the caller's promise: no zero came before. Another thread may be writing its own
        // error there, so each byte is read once, and what comes of it is only shown.
        let byte = unsafe { start.add(index).read_volatile() };
        if byte == 0 {
            break;
        }
        bytes.push(byte as u8);
    }
    // NCCL ends some with a line feed, and errors are one line.
    let text = String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ");
    Some(text).filter(|text| !text.is_empty())
}

/// Why a file could not be opened: the loader's own words, which name the file once more.
fn chain(error: &libloading::Error, file: &Path) -> String {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let named = format!("{}: ", file.display());
    reason.strip_prefix(&named).map_or_else(|| reason.clone(), str::to_owned)
}

/// What a file lacks that opens, and is no NCCL that we can use.
fn too_old(library: &Opened, missing: &[&str]) -> String {
    let mut reason = format!("it lacks {}, which NCCL has from {REQUIRED_VERSION} on", missing.join(", "));
    // SAFETY: the contract of `load`.
    let get_version =
        unsafe { find::<unsafe extern "C" fn(*mut c_int) -> ResultCode>(library, "ncclGetVersion") };
    let mut version: c_int = 0;
    if let Some(get_version) = get_version {
        // SAFETY: it writes one integer.
        if unsafe { get_version(&mut version) } == ResultCode::SUCCESS {
            reason = format!("{reason}; its version is {}", Version(version));
        }
    }
    reason
}

/// The file whose mapping in this process has that address; None where the system does not tell.
fn file_of(address: usize) -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        // 7f00-7f80 r-xp 00000000 08:01 1234    /usr/lib/libnccl.so.2
        let (range, _) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let bound = |text| usize::from_str_radix(text, 16).ok();
        let path = line.find('/').map(|at| line[at..].to_owned());
        path.filter(|_| bound(start) <= Some(address) && Some(address) < bound(end))
    })
}

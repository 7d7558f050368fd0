//! Memory that NCCL knows beforehand.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::worker::Command;
use super::{Communicator, Members};
use crate::device::{DeviceBuffer, DeviceBufferMut};
use crate::error::{Error, Result};
use crate::nccl::calls::Slot;
use crate::nccl::{Library, Progress};

/// Memory that is registered with a communicator until this is dropped.
pub struct Registration {
    handle: Handle,
    buffer: DeviceBuffer,
    commands: Sender<Command>,
}

#[derive(Clone, Copy)]
enum Kind {
    Window,
    Buffer,
}

/// By which it is taken back.
#[derive(Clone, Copy, Debug)]
enum Handle {
    Window(Slot),
    Buffer(u64),
}

/// `NCCL_WIN_COLL_SYMMETRIC` (nccl.h), as vLLM registers windows.
const WINDOW_FLAGS: i32 = 1;

impl Communicator {
    /// Registers a window for symmetric operations (NCCL 2.27): all ranks must call it, with memory of
    /// the same length.
    ///
    /// # Errors
    /// [`Error::Unsupported`] from an older NCCL; [`Error::Misuse`] in a world of one, and for memory of
    /// another device; [`Error::Nccl`].
    ///
    /// # Cancel safety
    /// Dropped early, the memory is registered and taken back.
    pub async fn register_window(&self, buffer: &DeviceBuffer) -> Result<Registration> {
        self.register(buffer, Kind::Window).await
    }

    /// Registers memory, so that NCCL need not copy what it sends from there (NCCL 2.19).
    ///
    /// # Errors
    /// As [`register_window`](Self::register_window).
    ///
    /// # Cancel safety
    /// As there.
    pub async fn register_buffer(&self, buffer: &DeviceBuffer) -> Result<Registration> {
        self.register(buffer, Kind::Buffer).await
    }

    /// Memory of NCCL's own allocator, which windows need (NCCL 2.19). A communicator
    /// that is dropped lives on until it is freed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] from an older NCCL; [`Error::Nccl`] if there is no memory, which is not the end of the communicator.
    ///
    /// # Cancel safety
    /// The memory is freed again.
    pub async fn allocate(&self, bytes: usize) -> Result<DeviceBufferMut> {
        let Some(Members { commands, .. }) = &self.members else {
            return DeviceBufferMut::allocated(&self.device, bytes).await;
        };
        let (device, commands) = (Arc::clone(&self.device), commands.clone());
        let allocating = move |worker: &super::Worker| {
            let library = Arc::clone(&worker.shared().library);
            // SAFETY: the thread's device is current.
            let address = unsafe { library.mem_alloc(bytes)? };
            let owner = Allocation { address, library, commands };
            // SAFETY: it is ours alone, and so long, until the owner frees it.
            Ok(unsafe { DeviceBufferMut::from_raw(&device, address, bytes, owner) })
        };
        self.command(allocating, self.config.operation_timeout, || "NCCL to allocate memory".into()).await
    }

    async fn register(&self, buffer: &DeviceBuffer, kind: Kind) -> Result<Registration> {
        self.check_location("memory", buffer.device().location())?;
        let (address, bytes) = (buffer.address(), buffer.len());
        let Some(Members { commands, .. }) = &self.members else {
            return Err(Error::Misuse("a world of one has nothing to register memory for".into()));
        };
        let (buffer, commands) = (buffer.clone(), commands.clone());
        let registering = move |worker: &super::Worker| {
            let mut handle = None;
            worker.call(|library, comm| match kind {
                Kind::Window => {
                    // SAFETY: the memory is of this length, and lives as long as the registration.
                    let (slot, progress) =
                        unsafe { library.comm_window_register(comm, address, bytes, WINDOW_FLAGS)? };
                    handle = Some(Handle::Window(slot));
                    Ok(progress)
                }
                Kind::Buffer => {
                    // SAFETY: as above.
                    handle = Some(Handle::Buffer(unsafe { library.comm_register(comm, address, bytes)? }));
                    Ok(Progress::Done)
                }
            })?;
            let handle = handle.ok_or_else(|| Error::Bug("a registration without a handle".into()))?;
            // Made here, so that one whose caller has left is taken back.
            Ok(Registration { handle, buffer, commands })
        };
        self.command(registering, self.config.operation_timeout, || "NCCL to register memory".into()).await
    }
}

/// Memory of NCCL's allocator.
struct Allocation {
    address: u64,
    library: Arc<Library>,
    commands: Sender<Command>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let (address, library) = (self.address, Arc::clone(&self.library));
        let free = move || {
            // SAFETY: `mem_alloc` gave it, and nothing else frees it.
            if let Err(error) = unsafe { library.mem_free(address) } {
                tracing::warn!(%error, "memory of NCCL was not freed");
            }
        };
        // On the thread that has the device. It lives as long as we have a way to it.
        let _ = self.commands.send(Box::new(move |_worker| free()));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let (handle, buffer) = (self.handle, self.buffer.clone());
        let deregister: Command = Box::new(move |worker| {
            let done = worker.call(|library, comm| {
                // SAFETY: it was registered with this communicator, and only here it is taken back.
                unsafe {
                    match handle {
                        Handle::Window(slot) => library.comm_window_deregister(comm, slot.get()),
                        Handle::Buffer(handle) => {
                            library.comm_deregister(comm, handle).map(|()| Progress::Done)
                        }
                    }
                }
            });
            drop(buffer);
            if let Err(error) = done {
                tracing::debug!(%error, "memory stays registered until the communicator is gone");
            }
        });
        // Without its thread the communicator is gone, and its registrations with it.
        let _ = self.commands.send(deregister);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("buffer", &self.buffer).finish_non_exhaustive()
    }
}

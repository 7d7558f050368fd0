//! NCCL, loaded when it is asked for.
//!
//! Nothing of NCCL is linked. A [`Library`] is found and opened while the program runs, so one build runs
//! with any NCCL from 2.14 on, with AMD's RCCL, and without either. Functions that came after 2.18 may be
//! absent: calling one is an [`Error::Unsupported`](crate::Error::Unsupported), loading is not.
//!
//! ```no_run
//! use kvpipe::nccl::Library;
//!
//! let nccl = Library::load(None)?;
//! println!("NCCL {} at {}", nccl.version(), nccl.path());
//! # Ok::<(), kvpipe::Error>(())
//! ```
//!
//! # What takes the place of vLLM's `NCCLLibrary`
//!
//! Calls on communicators are for kvpipe's own communicator, and not public: they can be as wrong as C
//! lets them be. What NCCL answers becomes a [`Progress`], or an [`Error::Nccl`](crate::Error::Nccl) with
//! the code and NCCL's own words.
//!
//! | function | here, in `Library` | test |
//! |---|---|---|
//! | `ncclGetErrorString` | `error_text`, `check` | `the_real_library_says_something_to_every_code` |
//! | `ncclGetVersion` | `version` | `versions_are_read_in_both_of_nccls_codes` |
//! | `ncclGetUniqueId` | `unique_id` | `an_id_of_the_real_library_is_at_the_interface_that_was_chosen` |
//! | `ncclCommInitRank` | `comm_init_rank` | `a_communicator_is_made_with_the_ranks_and_the_whole_id` |
//! | `ncclAllReduce` | `all_reduce` | `all_reduce_passes_on_buffers_count_type_and_operation` |
//! | `ncclReduce` | `reduce` | `reduce_passes_on_its_root_as_well` |
//! | `ncclAllGather` | `all_gather` | `all_gather_passes_on_buffers_count_and_type` |
//! | `ncclReduceScatter` | `reduce_scatter` | `reduce_scatter_passes_on_buffers_count_type_and_operation` |
//! | `ncclSend` | `send` | `send_passes_on_source_count_type_and_peer` |
//! | `ncclRecv` | `recv` | `recv_passes_on_target_count_type_and_peer` |
//! | `ncclBroadcast` | `broadcast` | `broadcast_passes_on_its_root_and_takes_no_source_elsewhere` |
//! | `ncclCommDestroy` | `comm_destroy` | `communicators_are_finalized_destroyed_and_aborted` |
//! | `ncclGroupStart` | `group_start` | `groups_start_at_once_and_may_be_in_progress_at_their_end` |
//! | `ncclGroupEnd` | `group_end` | `groups_start_at_once_and_may_be_in_progress_at_their_end` |
//! | `ncclCommWindowRegister` | `comm_window_register` | `windows_are_registered_with_their_flags` |
//! | `ncclCommWindowDeregister` | `comm_window_deregister` | `windows_are_deregistered` |
//!
//! Its `unique_id_from_bytes` is [`UniqueId::from_bytes`]. And what a pipe that never hangs needs besides:
//!
//! | function | here, in `Library` | test |
//! |---|---|---|
//! | `ncclCommInitRankConfig` | `comm_init_rank_config` | `a_nonblocking_communicator_is_made_with_the_configuration_of_2_14` |
//! | `ncclCommFinalize` | `comm_finalize` | `communicators_are_finalized_destroyed_and_aborted` |
//! | `ncclCommAbort` | `comm_abort` | `communicators_are_finalized_destroyed_and_aborted` |
//! | `ncclCommGetAsyncError` | `comm_get_async_error` | `a_communicator_tells_its_state_its_size_and_its_rank` |
//! | `ncclGetLastError` | `last_error` | `what_nccl_said_last_is_told_on_one_line` |
//! | `ncclCommCount` | `comm_count` | `a_communicator_tells_its_state_its_size_and_its_rank` |
//! | `ncclCommUserRank` | `comm_user_rank` | `a_communicator_tells_its_state_its_size_and_its_rank` |
//! | `ncclMemAlloc` | `mem_alloc` | `memory_is_allocated_registered_and_given_back` |
//! | `ncclMemFree` | `mem_free` | `memory_is_allocated_registered_and_given_back` |
//! | `ncclCommRegister` | `comm_register` | `memory_is_allocated_registered_and_given_back` |
//! | `ncclCommDeregister` | `comm_deregister` | `memory_is_allocated_registered_and_given_back` |

mod calls;
mod codes;
// What NCCL uses is owned by those who wait for it; each call says how.
#[allow(unsafe_code)]
pub mod communicator;
mod functions;
mod library;
#[cfg(test)]
mod recorded;
mod search;

pub use crate::reduce_op::ReduceOp;
pub use codes::{DataType, Progress, ResultCode, Version};
pub use communicator::{Communicator, CommunicatorConfig, Group, Registration};
pub use functions::{Config, Functions, Missing, RawComm};
pub use library::Library;

pub use crate::wire::UniqueId;

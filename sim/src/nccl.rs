//! NCCL's functions without NCCL, for tests of what is written against [`kvpipe::nccl`].

use std::mem::transmute;

use kvpipe::nccl::Functions;
use kvpipe_fake_nccl::api;

/// The functions of [`kvpipe_fake_nccl`], which are linked into the process. Several ranks may be in it,
/// on streams of [`HostDevice`](crate::device::HostDevice). What they do and what can be switched, the
/// fake's docs say.
#[must_use]
#[expect(clippy::missing_transmute_annotations, reason = "the types are those of the fields")]
pub fn functions() -> Functions {
    macro_rules! table {
        (required { $($field:ident: $function:ident,)* } optional { $($newer:ident: $newer_function:ident,)* }) => {
            Functions {
                // SAFETY: both sides have the types of nccl.h; they only call them differently.
                $($field: unsafe { transmute::<*const (), _>(api::$function as *const ()) },)*
                // SAFETY: as above.
                $($newer: Some(unsafe { transmute::<*const (), _>(api::$newer_function as *const ()) }),)*
            }
        };
    }
    table! {
        required {
            get_version: ncclGetVersion,
            get_error_string: ncclGetErrorString,
            get_last_error: ncclGetLastError,
            get_unique_id: ncclGetUniqueId,
            comm_init_rank: ncclCommInitRank,
            comm_init_rank_config: ncclCommInitRankConfig,
            comm_finalize: ncclCommFinalize,
            comm_destroy: ncclCommDestroy,
            comm_abort: ncclCommAbort,
            comm_get_async_error: ncclCommGetAsyncError,
            comm_count: ncclCommCount,
            comm_user_rank: ncclCommUserRank,
            all_reduce: ncclAllReduce,
            reduce: ncclReduce,
            all_gather: ncclAllGather,
            reduce_scatter: ncclReduceScatter,
            broadcast: ncclBroadcast,
            send: ncclSend,
            recv: ncclRecv,
            group_start: ncclGroupStart,
            group_end: ncclGroupEnd,
        }
        optional {
            mem_alloc: ncclMemAlloc,
            mem_free: ncclMemFree,
            comm_register: ncclCommRegister,
            comm_deregister: ncclCommDeregister,
            comm_window_register: ncclCommWindowRegister,
            comm_window_deregister: ncclCommWindowDeregister,
        }
    }
}

//! A literal table of functions in this process, and what is made of what they answer.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use kvpipe::Error;
use kvpipe::nccl::{Config, Functions, Library, Progress, RawComm, ResultCode, UniqueId, Version};

extern "C" fn version_of(version: *mut c_int) -> ResultCode {
    // SAFETY: the library's integer.
    unsafe { *version = 23000 };
    ResultCode::SUCCESS
}

extern "C" fn text_of(code: ResultCode) -> *const c_char {
    match code {
        ResultCode::REMOTE_ERROR => c"remote process exited or there was a network error".as_ptr(),
        ResultCode(99) => c"unknown result code".as_ptr(),
        _ => ptr::null(),
    }
}

extern "C" fn nothing_was_wrong(_: RawComm) -> *const c_char {
    c"".as_ptr()
}

extern "C" fn two_lines(_: RawComm) -> *const c_char {
    c"NET/Socket : peer 10.0.0.2\n  has closed\n".as_ptr()
}

/// As long as NCCL's buffer, and without a zero at its end.
extern "C" fn a_full_buffer(_: RawComm) -> *const c_char {
    static FULL: [u8; 1024] = [b'x'; 1024];
    FULL.as_ptr().cast()
}

extern "C" fn none(_: RawComm) -> *const c_char {
    ptr::null()
}

extern "C" fn unique_id_of(id: *mut UniqueId) -> ResultCode {
    // SAFETY: the library's id.
    unsafe { *id = UniqueId([0xAB; UniqueId::BYTES]) };
    ResultCode::SUCCESS
}

/// Functions that these tests have no use for.
macro_rules! unused {
    ($($name:ident($($kind:ty),*);)*) => {
        $(extern "C" fn $name($(_: $kind),*) -> ResultCode { ResultCode::INTERNAL_ERROR })*
    };
}

unused! {
    init(*mut RawComm, c_int, UniqueId, c_int);
    init_config(*mut RawComm, c_int, UniqueId, c_int, *mut Config);
    of_comm(RawComm);
    state_of(RawComm, *mut ResultCode);
    number_of(RawComm, *mut c_int);
    reduces(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void);
    reduces_to(*const c_void, *mut c_void, usize, c_int, c_int, c_int, RawComm, *mut c_void);
    gathers(*const c_void, *mut c_void, usize, c_int, RawComm, *mut c_void);
    sends(*const c_void, usize, c_int, c_int, RawComm, *mut c_void);
    receives(*mut c_void, usize, c_int, c_int, RawComm, *mut c_void);
    of_group();
}

const TABLE: Functions = Functions {
    get_version: version_of,
    get_error_string: text_of,
    get_last_error: nothing_was_wrong,
    get_unique_id: unique_id_of,
    comm_init_rank: init,
    comm_init_rank_config: init_config,
    comm_finalize: of_comm,
    comm_destroy: of_comm,
    comm_abort: of_comm,
    comm_get_async_error: state_of,
    comm_count: number_of,
    comm_user_rank: number_of,
    all_reduce: reduces,
    reduce: reduces_to,
    all_gather: gathers,
    reduce_scatter: reduces,
    broadcast: reduces,
    send: sends,
    recv: receives,
    group_start: of_group,
    group_end: of_group,
    mem_alloc: None,
    mem_free: None,
    comm_register: None,
    comm_deregister: None,
    comm_window_register: None,
    comm_window_deregister: None,
};

#[test]
fn a_table_of_functions_is_a_library() {
    let library = Library::from_functions("a table", TABLE).unwrap();
    assert_eq!((library.path(), library.version()), ("a table", Version(23000)));
    assert_eq!(library.unique_id().unwrap(), UniqueId([0xAB; UniqueId::BYTES]));
    assert_eq!(library.missing().len(), 6);
    assert_eq!(format!("{library:?}"), "Library(a table 2.30.0)");
}

#[test]
fn a_table_that_does_not_tell_its_version_is_none() {
    extern "C" fn fails(_: *mut c_int) -> ResultCode {
        ResultCode::REMOTE_ERROR
    }
    let error = Library::from_functions("mute", Functions { get_version: fails, ..TABLE }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ncclGetVersion: remote process exited or there was a network error (NCCL code 6)"
    );
}

#[test]
fn success_and_progress_are_no_errors_and_all_else_is() {
    let library = Library::from_functions("a table", TABLE).unwrap();
    assert_eq!(library.check("ncclSend", ResultCode::SUCCESS).unwrap(), Progress::Done);
    assert_eq!(library.check("ncclSend", ResultCode::IN_PROGRESS).unwrap(), Progress::InProgress);
    for number in (-2..100).filter(|number| ![0, 7].contains(number)) {
        let error = library.check("ncclSend", ResultCode(number)).unwrap_err();
        assert!(matches!(error, Error::Nccl { call: "ncclSend", code, .. } if code == number), "{error:?}");
    }
}

#[test]
fn unknown_codes_survive_with_what_the_library_says_to_them() {
    let library = Library::from_functions("a table", TABLE).unwrap();
    let said = |number| library.check("ncclRecv", ResultCode(number)).unwrap_err().to_string();
    assert_eq!(said(99), "ncclRecv: unknown result code (NCCL code 99)");
    // To these the library says nothing.
    assert_eq!(said(2), "ncclRecv: ncclSystemError (NCCL code 2)");
    assert_eq!(said(-7), "ncclRecv: -7 (NCCL code -7)");
}

#[test]
fn what_nccl_said_last_is_told_on_one_line() {
    let library = Library::from_functions("a table", Functions { get_last_error: two_lines, ..TABLE });
    let library = library.unwrap();
    assert_eq!(library.last_error().unwrap(), "NET/Socket : peer 10.0.0.2 has closed");
    assert_eq!(
        library.check("ncclSend", ResultCode::REMOTE_ERROR).unwrap_err().to_string(),
        "ncclSend: remote process exited or there was a network error (NCCL code 6): \
         NET/Socket : peer 10.0.0.2 has closed"
    );
}

#[test]
fn a_last_error_is_read_no_further_than_its_buffer() {
    let last = |get_last_error| {
        Library::from_functions("a table", Functions { get_last_error, ..TABLE }).unwrap().last_error()
    };
    assert_eq!(last(a_full_buffer), Some("x".repeat(1024)));
    assert_eq!(last(nothing_was_wrong), None);
    assert_eq!(last(none), None);
}

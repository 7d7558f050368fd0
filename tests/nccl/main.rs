//! NCCL's function table: how a library is found and opened, what is made of its answers, and what the
//! real one answers on a machine without a GPU.

#![cfg(unix)]
#![allow(missing_docs, reason = "a test binary")]
// Tables of C functions are written, and the real library's functions called.
#![allow(unsafe_code)]

mod built;
mod codes;
mod documentation;
mod files;
mod process;
mod real;
mod search;
mod table;

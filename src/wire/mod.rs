//! Every byte that kvpipe's own protocol puts on a wire: pure encoding and decoding, no I/O, no clock.
//!
//! | module | what | who sends it |
//! |---|---|---|
//! | [`metadata`] | what an item is: None, or dtype and shape | every native transport |
//! | [`frame`] | framing, and the frames of the two directions of an edge | the tcp transport |
//! | [`handshake`] | the four messages before the first frame | the tcp transport |
//! | [`nccl`] | the same, and two more, where NCCL carries the payloads | the nccl transport |
//! | [`collective`] | framed alike: calls, messages and aborts between ranks | process groups |
//! | [`auth`] | the shared secret, and the proof of knowing it | the tcp transport |
//! | [`object`] | what ranks of a group send one another | native groups |
//! | [`pickle`] | the same, as Python's pickles | groups and stores that vLLM is in |
//! | [`text`] | the two kinds of text that messages carry | both |
//!
//! # Encoding
//!
//! Fields follow one another as bincode 2.0.1 writes them with fixed-width integers: little endian,
//! nothing in between, a text as its length in bytes (u64) and UTF-8, an optional field as one byte
//! 0 or 1 and then the value. Variable-width integers are not used, because bincode accepts the same
//! number in several widths.
//!
//! # Hostile input
//!
//! What is decoded may come from anybody. Decoding never panics, refuses input of more than 4,096
//! bytes, never allocates more than that, and accepts one form only: whatever decodes, encodes to the
//! same bytes again. Everything else is a [`DecodeError`] that names the fault. Only [`pickle`], a
//! foreign format with several writers, has bounds of its own, and accepts what each of them writes.

pub mod auth;
mod codec;
pub mod collective;
mod error;
pub mod frame;
pub mod handshake;
pub mod metadata;
pub mod nccl;
pub mod object;
pub mod pickle;
pub mod text;

pub use error::DecodeError;
pub use metadata::Metadata;
pub use object::{Object, UniqueId};

/// Whose keys and values a group and its pipes use. All ranks of a group must use the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireMode {
    /// kvpipe's own.
    #[default]
    Native,
    /// Those of vLLM, from 0.9 on, for peers that have never heard of kvpipe. Its pipes end with 0.12.
    Vllm,
}

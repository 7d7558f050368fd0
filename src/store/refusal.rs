//! Why a store refused a request.

/// Why a store did not do what it was asked. It is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// ADD or BARRIER on a value that is not a decimal number.
    #[error("the value of key {key:?} is not a decimal 64-bit integer")]
    NotANumber {
        /// Which key.
        key: String,
    },
    /// ADD beyond the range of an `i64`.
    #[error("adding {delta} to the {value} of key {key:?} overflows a 64-bit integer")]
    Overflow {
        /// Which key.
        key: String,
        /// What it holds.
        value: i64,
        /// What should have been added.
        delta: i64,
    },
    /// APPEND beyond [`Limits::value_bytes`](super::Limits::value_bytes).
    #[error("the value of key {key:?} would have {bytes} bytes, over the limit of {limit}")]
    ValueFull {
        /// Which key.
        key: String,
        /// How long the value would be.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More keys and queued values than [`Limits::stored_keys`](super::Limits::stored_keys).
    #[error("no room for key {key:?}: the store holds its limit of {limit} keys and queued values")]
    KeysFull {
        /// Which key.
        key: String,
        /// The limit.
        limit: usize,
    },
    /// More bytes than [`Limits::stored_bytes`](super::Limits::stored_bytes).
    #[error("no room for key {key:?}: the store would hold {bytes} bytes, over its limit of {limit}")]
    BytesFull {
        /// Which key.
        key: String,
        /// What the store would hold with it.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

//! A small key-value store through which ranks find each other and agree.
//!
//! [`Store`] is what a rank sees. [`MemoryStore`] lives in one process; `tcp::TcpStore` speaks the
//! protocol of PyTorch's TCPStore to `tcp::TcpStoreServer` or to PyTorch's own; [`PrefixStore`] gives
//! a part of any store its own names. They behave alike, and one test suite runs over all of them.
//!
//! A store is for addresses, counters and small messages. It is neither fast nor private: TCPStore
//! has no authentication, so whoever reaches the port can read, write and delete every key.
//!
//! ```
//! use std::time::Duration;
//! use kvpipe::store::{MemoryStore, PrefixStore, Store};
//!
//! # async fn example() -> kvpipe::Result<()> {
//! let second = Duration::from_secs(1);
//! let store = PrefixStore::new("ring", MemoryStore::new());
//! store.set("rank/0", "127.0.0.1:4000".into(), second).await?;
//! assert_eq!(store.get("rank/0", second).await?, "127.0.0.1:4000");
//! assert_eq!(store.add("joined", 1, second).await?, 1);
//! # Ok(())
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(example()).unwrap();
//! ```

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::error::Result;

#[cfg_attr(loom, allow(dead_code, reason = "the TCP server, which uses all of it, is left out"))]
mod keyspace;
mod limits;
mod memory;
mod prefix;
mod refusal;
mod stored;
#[cfg(not(loom))]
pub mod tcp;
#[cfg_attr(loom, allow(dead_code, reason = "the TCP server, which uses all of it, is left out"))]
mod waits;

pub use limits::Limits;
pub use memory::MemoryStore;
pub use prefix::PrefixStore;
pub use refusal::Refusal;

/// Keys and values that several ranks share.
///
/// A key is any text, a value any bytes, both within the store's [`Limits`]. Operations of one caller
/// take effect in the order in which they returned, and whatever returned is seen by every operation
/// that starts later, anywhere.
///
/// # Timeouts
/// Each operation has one, over everything it does. A zero timeout fails unless the answer is at
/// hand; no timeout is too long. [`Error::Timeout`](crate::Error::Timeout) names the operation, its
/// keys and the store.
///
/// # Cancel safety
/// Every future may be dropped at any time and leaves the store usable and nothing behind that waits.
/// Dropping what only looks or waits changes nothing: `get`, `multi_get`, `check`, `wait`, `num_keys`,
/// `list_keys`, `queue_len`. Whether any other operation that was dropped took effect is unknown, as it
/// is after an [`Error::Timeout`](crate::Error::Timeout) or [`Error::Io`](crate::Error::Io); each takes
/// effect at most once.
///
/// # Errors
/// Besides timeouts: [`Error::Misuse`](crate::Error::Misuse) for what is over a limit or is not a
/// number, and [`Error::Io`](crate::Error::Io) where the store can't be reached or refused the
/// operation by closing the connection, the only refusal that TCPStore's protocol has. An old server
/// refuses operations that it does not have in the same way; every kvpipe server has all of them, and
/// of PyTorch's (release headers of torch 2.1 to 2.15):
///
/// | operations | on PyTorch's servers |
/// |---|---|
/// | `queue_push`, `queue_pop`, `try_queue_pop`, `queue_len` | libuv since torch 2.8, never classic |
/// | `list_keys` | since torch 2.10 |
/// | `barrier` | since torch 2.12 |
/// | the others | since torch 2.5, the first that this client talks to |
pub trait Store: Send + Sync + 'static {
    /// Stores `value` under `key`, over what was there, and wakes whoever waits for the key. It
    /// returns once the store holds the value.
    ///
    /// # Cancel safety
    /// Dropped early, the value may or may not be stored; never a part of it.
    fn set(&self, key: &str, value: Bytes, timeout: Duration) -> impl Future<Output = Result<()>> + Send;

    /// The value under `key`, waiting until there is one. A key that is deleted again before its value
    /// was read is waited for again.
    ///
    /// # Cancel safety
    /// Dropped early, it has changed nothing and waits no more.
    fn get(&self, key: &str, timeout: Duration) -> impl Future<Output = Result<Bytes>> + Send;

    /// Adds `delta` to the number under `key` and gives the sum. A missing key is 0; the sum is stored
    /// as decimal text. Wakes whoever waits for the key. A value that is not a decimal `i64`, or a sum
    /// beyond one, is refused and the value stays as it was.
    ///
    /// # Cancel safety
    /// Dropped early, it may or may not have been added, once. Never repeat it blindly.
    fn add(&self, key: &str, delta: i64, timeout: Duration) -> impl Future<Output = Result<i64>> + Send;

    /// Whether all `keys` are there now; true for none.
    ///
    /// # Cancel safety
    /// Dropped early, it has changed nothing.
    fn check(&self, keys: &[&str], timeout: Duration) -> impl Future<Output = Result<bool>> + Send;

    /// Waits until each of `keys` has been there once since the call began; a key that is deleted
    /// meanwhile still counts. Returns at once for no keys.
    ///
    /// # Cancel safety
    /// Dropped early, it has changed nothing and waits no more.
    fn wait(&self, keys: &[&str], timeout: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Deletes `key`; false if it was not there. Wakes nobody. A queue of that name stays.
    ///
    /// # Cancel safety
    /// Dropped early, the key may or may not be deleted.
    fn delete(&self, key: &str, timeout: Duration) -> impl Future<Output = Result<bool>> + Send;

    /// Puts `value` behind the value under `key`; a missing one is empty. Wakes whoever waits for the
    /// key.
    ///
    /// # Cancel safety
    /// Dropped early, all of it may or may not have been appended, once.
    fn append(&self, key: &str, value: Bytes, timeout: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Stores `desired` under `key` if its value is `expected`, or if there is none and `expected` is
    /// empty; gives the value that the key has then. Wakes whoever waits for the key if it stored
    /// something.
    ///
    /// # A missing key looks like success
    /// If the key is missing and `expected` is not empty, nothing is stored and the answer is
    /// `expected`, though the key has no value (torch 2.8 and 2.15, both servers). Whoever compares the
    /// answer with `expected` to see that nobody interfered is deceived where a key can be deleted; so
    /// is, for the same reason, who sets a value to what it was. Compare with `desired`, and let it
    /// differ from `expected`.
    ///
    /// # Cancel safety
    /// Dropped early, it may or may not have been stored.
    fn compare_set(
        &self,
        key: &str,
        expected: Bytes,
        desired: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes>> + Send;

    /// The values under `keys`, in their order, waiting until all are there. They are read at one time,
    /// so that they fit together if they were set together; if a key is gone by then, all are waited
    /// for again.
    ///
    /// # Cancel safety
    /// Dropped early, it has changed nothing and waits no more.
    fn multi_get(&self, keys: &[&str], timeout: Duration) -> impl Future<Output = Result<Vec<Bytes>>> + Send;

    /// Stores all of `pairs` at one time, or none of them if they are over a limit. Of two values for
    /// one key the last one stays. Wakes whoever waits for the keys.
    ///
    /// # Cancel safety
    /// Dropped early, all may be stored, or none.
    fn multi_set(
        &self,
        pairs: &[(&str, Bytes)],
        timeout: Duration,
    ) -> impl Future<Output = Result<()>> + Send;

    /// How many keys the whole store has, whoever set them: with PyTorch's counter of workers, with
    /// what is not under the prefix of a [`PrefixStore`], and without queues.
    ///
    /// # Cancel safety
    /// Dropped early, it has changed nothing.
    fn num_keys(&self, timeout: Duration) -> impl Future<Output = Result<u64>> + Send;

    /// The keys of this store's users, in the order of their bytes; in a [`PrefixStore`] those under its
    /// prefix, without it. Queues are not among them, nor is what is not text and so has no name here.
    ///
    /// # Cancel safety
    /// Dropped early, it has changed nothing.
    fn list_keys(&self, timeout: Duration) -> impl Future<Output = Result<Vec<String>>> + Send;

    /// Puts `value` at the end of the queue `key`. Queues have names of their own, beside those of
    /// values, but [`check`](Self::check) and [`wait`](Self::wait) see a queue that is not empty as a
    /// key that is there. Wakes whoever waits for the key.
    ///
    /// # Cancel safety
    /// Dropped early, the value may or may not be in the queue, once.
    fn queue_push(
        &self,
        key: &str,
        value: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<()>> + Send;

    /// The first value of the queue `key`, which it takes out, waiting until there is one. If another
    /// was faster it waits again; who waits longest is not served first.
    ///
    /// # Cancel safety
    /// Dropped early, a value may be taken and lost, unless the store is in this process. To be able to
    /// stop waiting at no risk, [`wait`](Self::wait) for the key, then use
    /// [`try_queue_pop`](Self::try_queue_pop) and don't drop that.
    fn queue_pop(&self, key: &str, timeout: Duration) -> impl Future<Output = Result<Bytes>> + Send;

    /// As [`queue_pop`](Self::queue_pop), but `None` if the queue is empty now.
    ///
    /// # Cancel safety
    /// Dropped early, a value may be taken and lost.
    fn try_queue_pop(
        &self,
        key: &str,
        timeout: Duration,
    ) -> impl Future<Output = Result<Option<Bytes>>> + Send;

    /// How many values the queue `key` has.
    ///
    /// # Cancel safety
    /// Dropped early, it has changed nothing.
    fn queue_len(&self, key: &str, timeout: Duration) -> impl Future<Output = Result<u64>> + Send;

    /// Arrives at the barrier `key`, and waits until `world_size` have. The count stays under the key as
    /// decimal text, also of those whose wait timed out, and is not reset: a barrier serves once, and
    /// whoever comes later passes at once. Use another key each time, and delete it when all have
    /// passed.
    ///
    /// # Errors
    /// [`Error::Misuse`](crate::Error::Misuse) for a `world_size` of 0, or if the key holds something
    /// else.
    ///
    /// # Cancel safety
    /// Dropped early, it waits no more, but may have been counted. Arriving again counts twice.
    fn barrier(
        &self,
        key: &str,
        world_size: usize,
        timeout: Duration,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// Keys as an error names them: `key "a"`, or `keys "a", "b"`, and not all of a long list.
struct Keys<'a>(&'a [&'a str]);

/// How many keys of a list an error names.
const NAMED_KEYS: usize = 4;

impl fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "key" } else { "keys" })?;
        for (index, key) in self.0.iter().take(NAMED_KEYS).enumerate() {
            write!(f, "{} {key:?}", if index == 0 { "" } else { "," })?;
        }
        match self.0.len().saturating_sub(NAMED_KEYS) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_first_keys_of_a_long_list() {
        assert_eq!(Keys(&["a"]).to_string(), "key \"a\"");
        assert_eq!(Keys(&["a", "b"]).to_string(), "keys \"a\", \"b\"");
        let six = ["a", "b", "c", "d", "e", "f"];
        assert_eq!(Keys(&six).to_string(), "keys \"a\", \"b\", \"c\", \"d\" and 2 more");
    }
}

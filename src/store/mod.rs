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

mod keyspace;
mod limits;
mod memory;
mod prefix;
#[cfg(not(loom))]
pub mod tcp;

pub use keyspace::Refusal;
pub use limits::Limits;
pub use memory::MemoryStore;
pub use prefix::PrefixStore;

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
/// Dropping `get`, `check` or `wait` changes nothing. Whether a dropped `set`, `add` or `delete` took
/// effect is unknown, as it is after an [`Error::Timeout`](crate::Error::Timeout) or
/// [`Error::Io`](crate::Error::Io); each takes effect at most once.
///
/// # Errors
/// Besides timeouts: [`Error::Misuse`](crate::Error::Misuse) for what is over a limit or is not a
/// number, and [`Error::Io`](crate::Error::Io) where the store can't be reached or refused the
/// operation by closing the connection, the only refusal that TCPStore's protocol has.
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

    /// Deletes `key`; false if it was not there. Wakes nobody.
    ///
    /// # Cancel safety
    /// Dropped early, the key may or may not be deleted.
    fn delete(&self, key: &str, timeout: Duration) -> impl Future<Output = Result<bool>> + Send;
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

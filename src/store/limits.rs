//! What a store takes at most.

use crate::error::{Error, Result};

/// Bounds on what a store holds and on what one client may make it hold.
///
/// They are checked against the declared length, before anything is allocated. The first three
/// defaults are those of PyTorch's libuv server (torch 2.15, `TCPStoreLibUvBackend.cpp`), so that
/// what this store takes, that one takes too.
///
/// One client makes the server hold at most one unfinished request (`key_bytes + value_bytes`, or
/// `key_list_bytes`), one parked wait of the same size, and `outbound_bytes` plus one value of
/// replies that it has not read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The longest key, in bytes, including the `/` that the TCP client puts in front. 8 KiB.
    pub key_bytes: usize,
    /// The longest value, in bytes. 8 MiB.
    pub value_bytes: usize,
    /// The most keys that one check or wait may name. 131,072.
    pub keys_per_request: usize,
    /// The most bytes that the keys of one check or wait may have together. 16 MiB.
    pub key_list_bytes: usize,
    /// The most keys that the store holds. 1,048,576.
    pub stored_keys: usize,
    /// The most bytes that the keys and values in the store have together. 1 GiB.
    pub stored_bytes: usize,
    /// The most connections that a server keeps; one more is closed at once. 4096.
    pub clients: usize,
    /// The most bytes of replies that wait for one client to read them; a client that reads nothing
    /// is not read from any more. 1 MiB.
    pub outbound_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes: 8 << 10,
            value_bytes: 8 << 20,
            keys_per_request: 128 << 10,
            key_list_bytes: 16 << 20,
            stored_keys: 1 << 20,
            stored_bytes: 1 << 30,
            clients: 4096,
            outbound_bytes: 1 << 20,
        }
    }
}

impl Limits {
    /// Refuses a key that is too long, for a caller in this process.
    pub(crate) fn check_key(&self, key: &[u8]) -> Result<()> {
        if key.len() > self.key_bytes {
            let (length, limit) = (key.len(), self.key_bytes);
            return Err(Error::Misuse(format!("a key of {length} bytes is over the limit of {limit} bytes")));
        }
        Ok(())
    }

    /// Refuses a list of keys that is too long, or has a key that is.
    pub(crate) fn check_keys<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<()> {
        if keys.len() > self.keys_per_request {
            let (count, limit) = (keys.len(), self.keys_per_request);
            return Err(Error::Misuse(format!("{count} keys in one request are over the limit of {limit}")));
        }
        keys.iter().try_for_each(|key| self.check_key(key.as_ref()))?;
        let (length, limit) = (keys.iter().map(|key| key.as_ref().len()).sum::<usize>(), self.key_list_bytes);
        if length > limit {
            return Err(Error::Misuse(format!(
                "a list of keys of {length} bytes is over the limit of {limit} bytes"
            )));
        }
        Ok(())
    }

    /// Refuses a value that is too long, naming its key.
    pub(crate) fn check_value(&self, key: &str, value: &[u8]) -> Result<()> {
        if value.len() > self.value_bytes {
            let (length, limit) = (value.len(), self.value_bytes);
            return Err(Error::Misuse(format!(
                "a value of {length} bytes for key {key:?} is over the limit of {limit} bytes"
            )));
        }
        Ok(())
    }
}

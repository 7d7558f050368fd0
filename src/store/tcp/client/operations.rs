//! The operations of [`Store`] as requests.

use std::time::Duration;

use bytes::Bytes;

use super::exchange::Call;
use super::{TcpStore, answer};
use crate::error::Result;
use crate::net::Net;
use crate::store::Store;
use crate::store::limits::checked_world_size;
use crate::store::tcp::protocol::Request;

/// Cancel safety, timeouts and errors as the trait says; see [`TcpStore`] for broken connections.
impl<N: Net> Store for TcpStore<N> {
    async fn set(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        self.shared.options.limits.check_values(key, [&value])?;
        let request = Request::Set { key: self.wire_key(key)?, value };
        self.tell(&Call { doing: "setting", keys: &[key], timeout }, &request).await
    }

    async fn get(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        let call = Call { doing: "getting", keys: &[key], timeout };
        let key = self.wire_key(key)?;
        self.ask_once_there(&call, vec![key.clone()], &Request::Get { key }, answer::value).await
    }

    async fn add(&self, key: &str, delta: i64, timeout: Duration) -> Result<i64> {
        let request = Request::Add { key: self.wire_key(key)?, delta };
        self.ask(&Call { doing: "adding to", keys: &[key], timeout }, &request, answer::number).await
    }

    async fn check(&self, keys: &[&str], timeout: Duration) -> Result<bool> {
        let request = Request::Check { keys: self.wire_keys(keys)? };
        self.ask(&Call { doing: "checking", keys, timeout }, &request, answer::ready).await
    }

    async fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        let request = Request::Wait { keys: self.wire_keys(keys)? };
        self.wait_for(&Call { doing: "waiting for", keys, timeout }, &request).await
    }

    async fn delete(&self, key: &str, timeout: Duration) -> Result<bool> {
        let request = Request::DeleteKey { key: self.wire_key(key)? };
        let deleted = |reply| answer::number(reply).map(|deleted| deleted == 1);
        self.ask(&Call { doing: "deleting", keys: &[key], timeout }, &request, deleted).await
    }

    async fn append(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        self.shared.options.limits.check_values(key, [&value])?;
        let request = Request::Append { key: self.wire_key(key)?, value };
        self.tell(&Call { doing: "appending to", keys: &[key], timeout }, &request).await
    }

    async fn compare_set(
        &self,
        key: &str,
        expected: Bytes,
        desired: Bytes,
        timeout: Duration,
    ) -> Result<Bytes> {
        self.shared.options.limits.check_values(key, [&expected, &desired])?;
        let request = Request::CompareSet { key: self.wire_key(key)?, expected, desired };
        let call = Call { doing: "comparing and setting", keys: &[key], timeout };
        self.ask(&call, &request, answer::value).await
    }

    async fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Bytes>> {
        let call = Call { doing: "getting", keys, timeout };
        let keys = self.wire_keys(keys)?;
        self.ask_once_there(&call, keys.clone(), &Request::MultiGet { keys }, answer::values).await
    }

    async fn multi_set(&self, pairs: &[(&str, Bytes)], timeout: Duration) -> Result<()> {
        let keys: Vec<&str> = pairs.iter().map(|(key, _)| *key).collect();
        let pairs: Vec<(Bytes, Bytes)> =
            pairs.iter().map(|(key, value)| (wire_key(key), value.clone())).collect();
        self.shared.options.limits.check_pairs(&pairs)?;
        let call = Call { doing: "setting", keys: &keys, timeout };
        self.tell(&call, &Request::MultiSet { pairs }).await
    }

    async fn num_keys(&self, timeout: Duration) -> Result<u64> {
        let call = Call { doing: "counting", keys: &[], timeout };
        self.ask(&call, &Request::NumKeys, answer::count).await
    }

    async fn list_keys(&self, timeout: Duration) -> Result<Vec<String>> {
        let call = Call { doing: "listing", keys: &[], timeout };
        let keys = self.ask(&call, &Request::ListKeys, answer::keys).await?;
        let mut names: Vec<String> = keys.iter().filter_map(|key| name(key)).collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn queue_push(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        self.shared.options.limits.check_values(key, [&value])?;
        let request = Request::QueuePush { key: self.wire_key(key)?, value };
        self.tell(&Call { doing: "pushing to the queue of", keys: &[key], timeout }, &request).await
    }

    async fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        let call = Call { doing: "popping from the queue of", keys: &[key], timeout };
        self.pop_once_there(&call, self.wire_key(key)?).await
    }

    async fn try_queue_pop(&self, key: &str, timeout: Duration) -> Result<Option<Bytes>> {
        let request = Request::QueuePop { key: self.wire_key(key)? };
        let call = Call { doing: "popping from the queue of", keys: &[key], timeout };
        self.ask(&call, &request, answer::popped).await
    }

    async fn queue_len(&self, key: &str, timeout: Duration) -> Result<u64> {
        let request = Request::QueueLen { key: self.wire_key(key)? };
        let call = Call { doing: "measuring the queue of", keys: &[key], timeout };
        self.ask(&call, &request, answer::count).await
    }

    async fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<()> {
        let world_size = checked_world_size(key, world_size)?;
        let request = Request::Barrier { key: self.wire_key(key)?, world_size };
        self.wait_for(&Call { doing: "waiting at the barrier of", keys: &[key], timeout }, &request).await
    }
}

impl<N: Net> TcpStore<N> {
    /// A user's key as it is on the wire.
    fn wire_key(&self, key: &str) -> Result<Bytes> {
        let key = wire_key(key);
        self.shared.options.limits.check_key(&key)?;
        Ok(key)
    }

    fn wire_keys(&self, keys: &[&str]) -> Result<Vec<Bytes>> {
        let keys: Vec<Bytes> = keys.iter().map(|key| wire_key(key)).collect();
        self.shared.options.limits.check_keys(&keys)?;
        Ok(keys)
    }
}

/// PyTorch's clients put a `/` in front of every key of a user.
fn wire_key(key: &str) -> Bytes {
    Bytes::from(["/", key].concat())
}

/// The user's key that is so on the wire, if it is one.
fn name(wire_key: &[u8]) -> Option<String> {
    std::str::from_utf8(wire_key.strip_prefix(b"/")?).ok().map(str::to_owned)
}

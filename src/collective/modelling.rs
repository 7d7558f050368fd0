//! What loom's models need of the inside of groups. Only there under `--cfg loom`.

use std::future::poll_fn;
use std::sync::Arc;

use super::lobby::Lobby;
use crate::error::{Error, Result};

/// What the operation and the keeper of a group share, with numbers for connections.
#[derive(Debug)]
pub struct SharedLobby(Lobby<u8>);

impl Default for SharedLobby {
    fn default() -> Self {
        Self(Lobby::new())
    }
}

impl SharedLobby {
    /// The keeper lets a rank in.
    pub fn admit(&self, connection: u8) {
        self.0.admit(connection);
    }

    /// The keeper takes what no operation has.
    pub fn take(&self) -> Option<u8> {
        self.0.take()
    }

    /// The operation waits for a rank.
    ///
    /// # Errors
    /// The group's failure.
    pub async fn arrival(&self) -> Result<u8, Arc<Error>> {
        poll_fn(|cx| self.0.poll_operation(cx)).await
    }

    /// Either finds out that the group has failed.
    pub fn fail(&self, cause: Error) {
        self.0.fail(cause);
    }

    /// The keeper waits for the group to fail.
    pub async fn failed(&self) -> Arc<Error> {
        poll_fn(|cx| self.0.poll_failure(cx)).await
    }

    /// Why the group has failed.
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.0.failure()
    }
}

//! Where an edge's connections come in: shakes hands with whoever knocks, for as long as the edge
//! lives.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::timeout;

use super::handshake::{Candidate, Failure, Party};
use crate::error::{Error, Result};
use crate::net::{Listener, Net};
use crate::wire::handshake::RefusalReason;

/// Connections that shake hands at the same time. One more displaces the oldest, so that silent
/// strangers, however many, can't keep the peer out: it needs two round trips, they need as many new
/// connections in that time.
const HANDSHAKES_MAX: usize = 64;

/// Keeps a listener that fails again and again from spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener, and the handshakes under way.
pub(crate) struct Door<N: Net> {
    listener: N::Listener,
    party: Arc<Party>,
    /// How long a handshake may take.
    patience: Duration,
    /// Side by side, so that a stranger who says nothing keeps nobody waiting.
    handshakes: JoinSet<Result<Candidate<N::Stream>, Failure>>,
    oldest_first: VecDeque<AbortHandle>,
    last_refused: Option<String>,
}

impl<N: Net> Door<N> {
    pub(crate) fn new(listener: N::Listener, party: Party, patience: Duration) -> Self {
        Self {
            listener,
            party: Arc::new(party),
            patience,
            handshakes: JoinSet::new(),
            oldest_first: VecDeque::new(),
            last_refused: None,
        }
    }

    /// The next connector that has proved itself. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Bug`], and the failures of our own entropy.
    pub(crate) async fn next(&mut self) -> Result<Candidate<N::Stream>> {
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.handshakes.join_next() => match handshake(ended) {
                    Ok(candidate) => return Ok(candidate),
                    Err(Failure::Fatal(error)) => return Err(error),
                    Err(Failure::Stranger(reason) | Failure::NobodyThere(reason) | Failure::Taken(reason)) => {
                        self.note_refused(reason);
                    }
                },
                incoming = self.listener.accept() => match incoming {
                    Ok((stream, address)) => self.greet(stream, address),
                    Err(error) => {
                        // Of one connection, or for want of descriptors: the next may do better.
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Tells a candidate why not, without keeping anybody waiting.
    pub(crate) fn refuse(&mut self, candidate: Candidate<N::Stream>, reason: RefusalReason, text: String) {
        let address = candidate.address();
        self.spawn(address, async move {
            candidate.refuse(reason, &text).await?;
            Err(Failure::Stranger(format!("{address}: {reason}: {text}")))
        });
    }

    /// Notes whom we did not let in, for the error if nobody else comes.
    pub(crate) fn note_refused(&mut self, reason: String) {
        // Once for people; a stranger who comes again and again must not fill the log.
        match self.last_refused {
            None => tracing::warn!(reason, "refused a connection; others only on debug level"),
            Some(_) => tracing::debug!(reason, "refused a connection"),
        }
        self.last_refused = Some(reason);
    }

    pub(crate) fn last_refused(&self) -> Option<&str> {
        self.last_refused.as_deref()
    }

    /// How long a step of a handshake may take.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    fn greet(&mut self, stream: N::Stream, address: SocketAddr) {
        let party = Arc::clone(&self.party);
        self.spawn(address, async move { party.admit(stream, address).await });
    }

    fn spawn(
        &mut self,
        address: SocketAddr,
        handshake: impl Future<Output = Result<Candidate<N::Stream>, Failure>> + Send + 'static,
    ) {
        let patience = self.patience;
        self.oldest_first.push_back(self.handshakes.spawn(async move {
            timeout(patience, handshake).await.unwrap_or_else(|_| {
                Err(Failure::Stranger(format!("{address}: no handshake within {patience:?}")))
            })
        }));
        self.oldest_first.retain(|handshake| !handshake.is_finished());
        if self.oldest_first.len() > HANDSHAKES_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            oldest.abort();
        }
    }
}

fn handshake<T>(ended: Result<Result<T, Failure>, JoinError>) -> Result<T, Failure> {
    ended.map_err(|error| match error.is_cancelled() {
        true => Failure::Stranger("a stranger was displaced by newer ones".into()),
        false => Failure::Fatal(Error::Bug(format!("a handshake ended by {error}"))),
    })?
}

//! One type for all backends: each scenario is compiled once, and not again for each transport.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;

use kvpipe::transport::{Guarantees, Inbox, Incoming, Outbox, Outgoing, Transport};
use kvpipe::{Item, Link, Result};

use super::{Backend, InOf, OutOf};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
type BreakingEdge = (AnyOutgoing, AnyIncoming, Box<dyn Any>);
type SendBoxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whatever backend a scenario is to run on. Its methods are those of [`Backend`].
pub struct AnyBackend(Box<dyn DynBackend>);

impl AnyBackend {
    /// One that does what `backend` does.
    #[must_use]
    pub fn new(backend: impl Backend) -> Self {
        Self(Box::new(backend))
    }

    /// As [`Backend::pair`].
    pub async fn pair(&self) -> (AnyTransport, AnyTransport) {
        self.0.pair().await
    }

    /// As [`Backend::edge`].
    pub async fn edge(&self) -> (AnyOutgoing, AnyIncoming) {
        self.0.edge().await
    }

    /// As [`Backend::breaking_edge`].
    pub async fn breaking_edge(&self) -> Option<(AnyOutgoing, AnyIncoming, Box<dyn Any>)> {
        self.0.breaking_edge().await
    }

    /// As [`Backend::impatient`].
    #[must_use]
    pub fn impatient(self) -> Option<Self> {
        self.0.impatient()
    }
}

/// Whatever transport a backend connects.
pub struct AnyTransport(Box<dyn DynTransport>);

impl Transport for AnyTransport {
    type Out = AnyOutgoing;
    type In = AnyIncoming;

    fn guarantees(&self) -> Guarantees {
        self.0.guarantees()
    }

    fn split(self) -> (AnyOutgoing, AnyIncoming) {
        self.0.split()
    }
}

/// The sending direction of whatever transport.
pub struct AnyOutgoing(Box<dyn DynOutgoing>);

impl Outgoing for AnyOutgoing {
    fn link(&self) -> Link {
        self.0.link()
    }

    fn admission(&self) -> fn(&Item) -> Result<()> {
        self.0.admission()
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        self.0.run(items).await
    }
}

/// The receiving direction of whatever transport.
pub struct AnyIncoming(Box<dyn DynIncoming>);

impl Incoming for AnyIncoming {
    fn link(&self) -> Link {
        self.0.link()
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        self.0.run(items).await
    }
}

trait DynBackend: Send {
    fn pair(&self) -> Boxed<'_, (AnyTransport, AnyTransport)>;
    fn edge(&self) -> Boxed<'_, (AnyOutgoing, AnyIncoming)>;
    fn breaking_edge(&self) -> Boxed<'_, Option<BreakingEdge>>;
    fn impatient(self: Box<Self>) -> Option<AnyBackend>;
}

impl<B: Backend> DynBackend for B {
    fn pair(&self) -> Boxed<'_, (AnyTransport, AnyTransport)> {
        Box::pin(async {
            let (left, right) = Backend::pair(self).await;
            (AnyTransport(Box::new(left)), AnyTransport(Box::new(right)))
        })
    }

    fn edge(&self) -> Boxed<'_, (AnyOutgoing, AnyIncoming)> {
        Box::pin(async {
            let (outgoing, incoming) = Backend::edge(self).await;
            erased::<B>(outgoing, incoming)
        })
    }

    fn breaking_edge(&self) -> Boxed<'_, Option<BreakingEdge>> {
        Box::pin(async {
            let (outgoing, incoming, wire) = Backend::breaking_edge(self).await?;
            let (outgoing, incoming) = erased::<B>(outgoing, incoming);
            Some((outgoing, incoming, wire))
        })
    }

    fn impatient(self: Box<Self>) -> Option<AnyBackend> {
        Backend::impatient(*self).map(AnyBackend::new)
    }
}

fn erased<B: Backend>(outgoing: OutOf<B>, incoming: InOf<B>) -> (AnyOutgoing, AnyIncoming) {
    (AnyOutgoing(Box::new(outgoing)), AnyIncoming(Box::new(incoming)))
}

trait DynTransport {
    fn guarantees(&self) -> Guarantees;
    fn split(self: Box<Self>) -> (AnyOutgoing, AnyIncoming);
}

impl<T: Transport> DynTransport for T {
    fn guarantees(&self) -> Guarantees {
        Transport::guarantees(self)
    }

    fn split(self: Box<Self>) -> (AnyOutgoing, AnyIncoming) {
        let (outgoing, incoming) = Transport::split(*self);
        (AnyOutgoing(Box::new(outgoing)), AnyIncoming(Box::new(incoming)))
    }
}

trait DynOutgoing: Send {
    fn link(&self) -> Link;
    fn admission(&self) -> fn(&Item) -> Result<()>;
    fn run(self: Box<Self>, items: &Outbox) -> SendBoxed<'_, Result<()>>;
}

impl<T: Outgoing> DynOutgoing for T {
    fn link(&self) -> Link {
        Outgoing::link(self)
    }

    fn admission(&self) -> fn(&Item) -> Result<()> {
        Outgoing::admission(self)
    }

    fn run(self: Box<Self>, items: &Outbox) -> SendBoxed<'_, Result<()>> {
        Box::pin(Outgoing::run(*self, items))
    }
}

trait DynIncoming: Send {
    fn link(&self) -> Link;
    fn run(self: Box<Self>, items: &Inbox) -> SendBoxed<'_, Result<()>>;
}

impl<T: Incoming> DynIncoming for T {
    fn link(&self) -> Link {
        Incoming::link(self)
    }

    fn run(self: Box<Self>, items: &Inbox) -> SendBoxed<'_, Result<()>> {
        Box::pin(Incoming::run(*self, items))
    }
}

//! The receiving end of an edge: makes room for what is announced, and takes it as it arrives.

use std::net::SocketAddr;

use super::NcclConfig;
use super::intake::Intake;
use crate::error::{Error, Link, Result};
use crate::net::Net;
use crate::store::Store;
use crate::sync::Mutex;
use crate::transport::session::ReceiveSession;
use crate::transport::tcp::door::Door;
use crate::transport::tcp::handshake::Party;
use crate::transport::tcp::{TcpIncoming, incoming};
use crate::transport::{Inbox, Incoming, Ring};

/// The receiving end of an edge: at a rank, from the previous one in its ring.
#[derive(Debug)]
pub struct NcclIncoming<N: Net> {
    control: TcpIncoming<N>,
    ring: Ring,
    config: NcclConfig,
}

impl<N: Net> NcclIncoming<N> {
    /// Binds a listener for the control connection on exactly `address` (port 0 chooses one) and
    /// publishes it in `store`.
    ///
    /// # Errors
    /// [`Error::Io`] if the address can't be bound; [`Error::Misuse`] for an unspecified address such as
    /// 0.0.0.0, which nobody can connect to, and for a group whose name is too long; and whatever the
    /// store answers.
    pub async fn bind(
        net: N,
        store: &impl Store,
        ring: Ring,
        address: SocketAddr,
        config: NcclConfig,
    ) -> Result<Self> {
        let config = config.prepared()?;
        let control = TcpIncoming::bind(net, store, ring, address, config.control.clone()).await?;
        Ok(Self { control, ring, config })
    }

    /// The address that is published.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.control.local_addr()
    }
}

impl<N: Net> Incoming for NcclIncoming<N> {
    fn link(&self) -> Link {
        self.ring.incoming_link()
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        let control = &self.config.control;
        control.check()?;
        let party = Party::receiver(control, self.ring, items.max_item_bytes())?;
        let session = Mutex::new(ReceiveSession::new(party.session()));
        let edge = incoming::Edge::new(self.link(), items, control.clone(), session);
        let local_addr = self.control.local_addr();
        // One connection is enough, so the door is shut behind it.
        let agreed = {
            let mut door = Door::<N>::new(self.control.into_listener(), party, control.heartbeat);
            edge.meet(&mut door, local_addr).await?
        };
        let link = self.ring.incoming_link().at(agreed.address);
        match Intake::new(&edge, &link, agreed, &self.config).run().await {
            Err(error @ Error::PeerGone { .. }) => edge.lost(error).await,
            ended => ended,
        }
    }
}

//! Who sends to whom.

#[cfg(not(loom))]
use crate::error::Link;
use crate::error::{Error, Result};

/// A rank in a ring: it sends to the next rank and receives from the previous one.
///
/// ```
/// use kvpipe::transport::Ring;
///
/// let last = Ring::new(2, 3)?;
/// assert_eq!((last.next(), last.previous()), (0, 1));
/// assert!(Ring::new(3, 3).is_err());
/// # Ok::<(), kvpipe::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    rank: usize,
    world_size: usize,
}

impl Ring {
    /// Rank `rank` of `world_size`.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such rank, or more than 2^32 of them.
    pub fn new(rank: usize, world_size: usize) -> Result<Self> {
        if rank >= world_size {
            return Err(Error::Misuse(format!("rank {rank} is beyond the world size {world_size}")));
        }
        // Ranks are 32 bits on the wire.
        if u32::try_from(world_size).is_err() {
            return Err(Error::Misuse(format!("a world size of {world_size} is over the limit of 2^32 - 1")));
        }
        Ok(Self { rank, world_size })
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// The rank that this one sends to.
    #[must_use]
    pub fn next(&self) -> usize {
        (self.rank + 1) % self.world_size
    }

    /// The rank that this one receives from.
    #[must_use]
    pub fn previous(&self) -> usize {
        (self.rank + self.world_size - 1) % self.world_size
    }

    #[cfg(not(loom))]
    pub(crate) fn outgoing_link(&self) -> Link {
        Link::new(self.rank, self.next())
    }

    #[cfg(not(loom))]
    pub(crate) fn incoming_link(&self) -> Link {
        Link::new(self.rank, self.previous())
    }
}

//! What an edge keeps to read tensors from devices.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::device::{DeviceBuffer, Location, Reading, Staging};
use crate::error::Result;

/// Staging for whatever devices its items are on, made when they are met.
#[derive(Debug, Default)]
pub(super) struct Stagings(BTreeMap<Location, Staging>);

impl Stagings {
    /// Reads `from` in pieces, once it is [ready](DeviceBuffer::ready).
    pub(super) fn read<'a>(&'a mut self, from: &'a DeviceBuffer) -> Result<Reading<'a>> {
        let staging = match self.0.entry(from.device().location()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(Staging::new(from.device())?),
        };
        Ok(staging.read(from))
    }
}

//! How a payload is split: among ranks, and into messages.

use std::ops::Range;

/// Contiguous blocks of bytes, one a rank, in the order of ranks.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    /// Where each begins, and after them where the last ends.
    bounds: Vec<usize>,
}

impl Blocks {
    /// As even as whole elements can be split.
    pub(super) fn even(elements: usize, element_bytes: usize, ranks: usize) -> Self {
        let (each, more) = (elements / ranks, elements % ranks);
        let bounds = (0..=ranks).map(|rank| (rank * each + rank.min(more)) * element_bytes).collect();
        Self { bounds }
    }

    /// Of these sizes.
    pub(super) fn of(bytes: &[usize]) -> Self {
        let sums = bytes.iter().scan(0, |end, bytes| {
            *end += bytes;
            Some(*end)
        });
        Self { bounds: std::iter::once(0).chain(sums).collect() }
    }

    pub(super) fn total(&self) -> usize {
        self.bounds[self.bounds.len() - 1]
    }

    pub(super) fn block(&self, rank: usize) -> Range<usize> {
        self.bounds[rank]..self.bounds[rank + 1]
    }

    /// The bytes of `count` ranks' blocks up to that of `last`, in a circle: in one piece, or in two if
    /// the circle is closed in between. A piece is empty only if there are no bytes at all.
    pub(super) fn up_to(&self, last: usize, count: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = self.bounds[last + 1];
        let (whole, wrapped) = match (last + 1).checked_sub(count) {
            Some(first) => (self.bounds[first]..end, None),
            None => {
                let first = last + 1 + self.bounds.len() - 1 - count;
                let (high, low) = (self.bounds[first]..self.total(), 0..end);
                if high.is_empty() { (low, None) } else { (high, Some(low).filter(|low| !low.is_empty())) }
            }
        };
        std::iter::once(whole).chain(wrapped)
    }
}

/// The messages of a range: as many bytes each, but for the last. One even if there are no bytes, because
/// it tells that its sender has begun.
pub(super) fn chunks(range: Range<usize>, chunk_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let chunk_bytes = chunk_bytes.max(1);
    let count = range.len().div_ceil(chunk_bytes).max(1);
    (0..count).map(move |index| {
        let start = range.start + index * chunk_bytes;
        start..(start + chunk_bytes.min(range.end - start))
    })
}

//! What NCCL's collectives and those between hosts have in common.

use std::fmt;

/// How a collective combines elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
// The numbers of `ncclRedOp_t`.
#[repr(i32)]
pub enum ReduceOp {
    /// Their sum.
    #[default]
    Sum = 0,
    /// Their product.
    Prod = 1,
    /// The largest.
    Max = 2,
    /// The smallest.
    Min = 3,
    /// Their mean.
    Avg = 4,
}

impl ReduceOp {
    /// NCCL's number for it.
    #[cfg_attr(not(all(unix, not(loom))), allow(dead_code, reason = "NCCL is left out"))]
    pub(crate) const fn code(self) -> i32 {
        self as i32
    }
}

/// The name in lower case: `sum`.
impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
            Self::Max => "max",
            Self::Min => "min",
            Self::Avg => "avg",
        })
    }
}

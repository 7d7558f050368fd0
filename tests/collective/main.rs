//! Process groups: operations of several ranks, and what becomes of them when one fails.

mod agreement;
mod barrier;
mod operations;
mod ranks;

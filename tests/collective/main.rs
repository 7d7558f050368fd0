//! Process groups: operations of several ranks, and what becomes of them when one fails.

mod barrier;
mod operations;
mod ranks;

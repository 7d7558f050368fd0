//! Process groups: operations of several ranks, and what becomes of them when one fails.

mod agreement;
mod barrier;
mod death;
mod failures;
mod meeting;
mod mortal;
mod operations;
mod ranks;

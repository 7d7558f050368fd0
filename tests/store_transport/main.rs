//! The pipe over a store: outages, what stays in the store, who meets whom, and what a peer that breaks
//! the protocol can do. What every transport must do is in the conformance suite.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]

#[macro_use]
#[path = "../delegate/mod.rs"]
mod delegate;

mod bounds;
mod hostile;
mod meeting;
mod outages;
mod slow;
mod support;
mod watched;

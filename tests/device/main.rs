//! Devices, device tensors and their way over host transports: the whole CUDA path, on a fake driver.

// The driver is chosen by the environment of a process, so each test runs in a child of its own. A gate on
// a stream, and what the fake says of itself, are reached through C.
#![allow(unsafe_code)]

mod copies;
mod events;
mod finding;
mod flight;
mod over_store;
mod over_tcp;
mod stand_in;
mod support;
mod tensors;

//! What goes wrong in a simulated network, and that it does so as it does between real hosts.

mod hosts;
mod links;
mod support;

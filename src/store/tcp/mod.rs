//! The store over TCP, in the protocol of PyTorch's TCPStore.
//!
//! Either end may be PyTorch's: any torch from 2.5 on (before, opcodes were others or PING was
//! missing), classic or libuv. The wire facts were observed with torch 2.8 and 2.15.
//!
//! - [`protocol`]: bytes to requests and back, without I/O;
//! - [`server_state`]: what the server answers to whom, without I/O;
//! - [`TcpStoreServer`]: the sockets around the two;
//! - [`TcpStore`]: the client.

mod client;
mod connection;
mod fields;
mod lists;
mod outbox;
mod parser;
mod pieces;
pub mod protocol;
mod reply;
mod reply_parser;
mod request;
mod server;
pub mod server_state;
mod serving;
mod stock;
mod watched;

pub use client::{ConnectOptions, TcpStore};
pub use server::{ServerStats, TcpStoreServer};

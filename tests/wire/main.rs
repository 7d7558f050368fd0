//! The wire format, from outside: frozen bytes, a second implementation, and what every message must
//! hold to against hostile input.

mod framing;
mod golden;
mod hostile;
mod item;
mod message;
mod oracle;
mod properties;

//! Loom models: every thread interleaving up to a preemption bound, each model named after its
//! hazard.
//!
//! `RUSTFLAGS="--cfg loom -C debug_assertions" cargo test --release --test loom -- --nocapture`
//!
//! # Who meets whom
//!
//! A queue has two sides, users and one transport, and one lock. All that its operations do under the
//! lock is one section; `send` (room, then the item), a permit sent short, `flush`, `close` and the
//! waits for room and items have a few. So two questions are left for each pair of operations: does it
//! matter that another comes between two sections of one, and is everybody woken who waits?
//!
//! [`pairs`] puts both to *every* cell of the first two tables, for each state in which a queue can be
//! (nothing held, queued, in flight), in every interleaving, with these rows and columns as its code;
//! then the second one to every two rows and a column together. A name in a cell is a model beside
//! that, with more items or more parties, and wake-ups that loom sees; `·` is [`pairs`] alone. The
//! `blocking_` methods are the same futures on a thread of their own, as in most models.
//!
//! ## The sending end: users and transport
//!
//! | | `next`, `try_next` | `settle` | `rewind` | `failed`, `progress` | returns | driver dropped |
//! |---|---|---|---|---|---|---|
//! | `send`, `reserve` | in_order | last_release, moved_waiting, pipe_backpressure | · | · | fail_waiting | driver_dropped |
//! | `send` cancelled, `send_timeout` | · | cancel_settle | · | · | · | · |
//! | `try_send` | · | · | · | · | · | · |
//! | permit sent, sent short, dropped | · | · | · | · | · | · |
//! | `finish` | pipe_in_order | close_settle_waiting | · | · | · | · |
//! | `close` | rewind_close | close_settle_waiting, patience | rewind_close | patience | fail_at_item | drop_flush_close |
//! | `abort` | abort_waiting | · | · | · | · | · |
//! | `flush` | · | flush_settled, flush_two | rewind_next | flush_settled | · | drop_flush_close |
//! | `undelivered`, `stats`, `failure` | undelivered | undelivered | · | · | lost_acknowledgement | driver_dropped |
//! | last drop | sender_dropped | · | · | patience_failed | · | · |
//!
//! `is_closed`, `accepted` and `settled` are reads of one section each, and columns of [`pairs`] too.
//!
//! ## The receiving end: users and transport
//!
//! | | `reserve`, `fill` | `reserve` cancelled, permit dropped | `closed` | `drained` | returns | driver dropped |
//! |---|---|---|---|---|---|---|
//! | `recv` | two_receivers | reserve_cancelled | · | drained | failure_behind_items | driver_dropped |
//! | `recv` cancelled, `recv_timeout` | recv_cancelled_fill, recv_cancelled_again | · | drop_during_recv | recv_cancelled_fill | recv_cancelled_fail | · |
//! | `try_recv` | · | · | · | drained_left | · | · |
//! | `close` | close_filling | · | close_filling, patience_left | · | · | · |
//! | `stats`, `failure` | · | · | · | · | · | · |
//! | last drop | reserve_cancelled_left | reserve_cancelled_left | drop_during_recv | drained_left | · | · |
//!
//! `taken` and `spare_bytes` are reads of one section each, and columns of [`pairs`] too.
//!
//! ## Users among themselves
//!
//! Every two rows of a table above, each with itself too, are in [`pairs`]; a last drop comes after all
//! but the permits, which hold no clone. Beside that:
//!
//! | | |
//! |---|---|
//! | `send`, another `send` | two_waiters |
//! | `send`, a `send` cancelled | cancel_waiting, cancel_settle |
//! | `send`, `finish` or `close` | close_waiting, close_settle_waiting |
//! | `send`, `abort` | abort_waiting |
//! | `send`, a permit dropped or sent short | permit_dropped, permit_short |
//! | `flush`, another `flush` | flush_two |
//! | `flush`, `close` | drop_flush_close |
//! | `recv`, another `recv` | two_receivers |
//! | `recv`, a `recv` cancelled | recv_cancelled_fill, recv_cancelled_again |
//! | `recv`, last drop | drop_during_recv |
//! | `close`, another `close` | close_filling |
//!
//! ## A transport with itself
//!
//! Both ends of a queue's transport side belong to one future, so two of its operations meet only as
//! halves of it that take turns: rewind_next. The two *ends* of the memory wire are in different
//! threads:
//!
//! | | `arrival` | `acknowledge` | last word, cut | receiving end dropped |
//! |---|---|---|---|---|
//! | item | wire_close | wire_acknowledged | wire_left, wire_cut | wire_receiver_gone |
//! | close | wire_close | wire_close | wire_close, wire_cut | wire_receiver_gone |
//! | abort | wire_abort | · | · | · |
//! | `response` | · | wire_acknowledged | wire_left, wire_cut | wire_receiver_gone |
//! | sending end dropped | wire_sender_gone | · | · | · |
//!
//! Here `·` is a pair that can't race (`response` and `arrival` wait for others), or is one section
//! against one section without anybody waiting for it. Its gate: gate. Whole pipes are in [`pipe`],
//! for close against close (`close_both_*`), for a receiver that is
//! dropped with the sender waiting behind it (receiver_dropped) and for the accounts after a failure.
//!
//! ## A process group
//!
//! Its operations and its keeper share a lobby, of one lock; all else of it is behind an async mutex of
//! tokio's, which is one task's at a time. [`lobby`]:
//!
//! | | `arrival` | `failed` | `fail` |
//! |---|---|---|---|
//! | `admit` | lobby_admit | · | lobby_admit_fail |
//! | `take` | lobby_take | · | · |
//! | `fail` | lobby_fail | lobby_fail | lobby_fail_twice |
//!
//! # What loom does not see
//!
//! - *Time.* What takes no time is over at once, everything else never: `patience*` are the models of
//!   the first kind, and in all others a transport that does not end is a deadlock.
//! - *Reference counts, statistics of blocked time*: std's; nothing waits for either.
//! - *The sessions of the tcp and store transports.* They have no state that threads share: session,
//!   flow and pulse are locked by halves of one future only, never across an `await`, and the lock is
//!   there so that the future may move between threads. The door's handshakes are tasks of their own,
//!   but share only what never changes (a simulation's seeded entropy apart, where one thread runs all
//!   of them), and give their result through tokio's `JoinSet`. What tells
//!   one half of the other is tokio's `Notify`, which loom can't see into; simulation and the state
//!   machine's own tests are for these.
//! - *The store's client and server* run on tokio alone, whose network is not there under loom.

#![cfg(loom)]
#![allow(missing_docs, reason = "a test binary")]

mod inbox;
mod lobby;
mod outbox;
mod pairs;
mod pipe;
mod support;
mod wire;

//! The queue at each end of a pipe against a reference: a plain first-in first-out list with a
//! budget, driven by random sequences of what users and transports can do.
//!
//! Everything runs in one thread. Futures are polled only after they were woken, so that a wake-up
//! that is lost shows as a difference from the reference, and not as a test that hangs.

#![allow(missing_docs, reason = "a test binary")]

mod ends;
mod inbox;
mod outbox;
mod support;

use proptest::test_runner::Config;
use proptest_state_machine::prop_state_machine;

use crate::inbox::Incoming;
use crate::outbox::Outgoing;

prop_state_machine! {
    #![proptest_config(Config { cases: 500, max_shrink_iters: 20_000, ..Config::default() })]

    #[test]
    fn the_sending_queue_is_a_fifo_with_a_budget_that_forgets_nothing(
        sequential 1..60 => Outgoing
    );

    #[test]
    fn the_receiving_queue_is_a_fifo_with_a_budget(sequential 1..60 => Incoming);
}

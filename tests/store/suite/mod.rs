//! What must hold for every store, run over each of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, MemoryStore, PrefixStore, Store};

use crate::support::{connect_with, server_at};

pub(crate) mod basics;
pub(crate) mod queues;
pub(crate) mod values;

use basics::*;
use queues::*;
use values::*;

/// One store as two ranks see it, and what keeps it alive.
pub(crate) struct World<S> {
    pub(crate) a: S,
    pub(crate) b: S,
    pub(crate) _server: Option<TcpStoreServer>,
}

/// For waits that end in vain.
const SOON: Duration = Duration::from_millis(20);

/// The limit on values in this suite: not so large that testing it takes long.
const VALUE_BYTES: usize = 1 << 20;

pub(crate) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.value_bytes = VALUE_BYTES;
    limits
}

fn memory() -> World<MemoryStore> {
    let store = MemoryStore::with_limits(limits());
    World { a: store.clone(), b: store, _server: None }
}

async fn tcp(host: IpAddr) -> World<TcpStore<TokioNet>> {
    let server = server_at(host, limits()).await;
    let connect = || connect_with(server.local_addr(), limits());
    World { a: connect().await, b: connect().await, _server: Some(server) }
}

fn prefixed<S: Store>(world: World<S>) -> World<PrefixStore<S>> {
    let World { a, b, _server } = world;
    World { a: PrefixStore::new("p", a), b: PrefixStore::new("p", b), _server }
}

macro_rules! for_every_store {
    ($($scenario:ident)*) => {
        for_every_store!(@over memory: memory(); $($scenario)*);
        for_every_store!(@over prefix_of_memory: prefixed(memory()); $($scenario)*);
        for_every_store!(@over tcp_v4: tcp(Ipv4Addr::LOCALHOST.into()).await; $($scenario)*);
        for_every_store!(@over tcp_v6: tcp(Ipv6Addr::LOCALHOST.into()).await; $($scenario)*);
        for_every_store!(@over prefix_of_tcp: prefixed(tcp(Ipv4Addr::LOCALHOST.into()).await); $($scenario)*);
    };
    (@over $store:ident: $world:expr; $($scenario:ident)*) => {
        mod $store {
            use super::*;

            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario($world).await;
            })*
        }
    };
}

for_every_store! {
    a_value_comes_back_as_it_was_set
    a_second_set_replaces_the_first
    get_waits_for_the_key
    get_times_out_naming_the_key_and_how_long
    many_gets_of_one_key_all_wake
    add_counts_from_zero_and_stores_decimal_text
    add_refuses_a_value_that_is_no_number_and_leaves_it
    add_refuses_overflow_and_leaves_the_value
    concurrent_adds_all_count
    add_wakes_a_waiter
    check_is_true_only_for_all_keys
    wait_returns_once_every_key_has_come_even_if_one_is_gone_again
    wait_for_nothing_or_for_what_is_there_returns
    wait_times_out_naming_its_keys
    delete_says_whether_the_key_was_there
    a_dropped_get_leaves_the_store_usable
    a_key_over_the_limit_is_the_callers_mistake
    a_value_over_the_limit_is_the_callers_mistake_and_the_limit_itself_is_not
    the_longest_timeout_is_accepted
    append_puts_behind_and_makes_a_key
    append_beyond_the_limit_is_refused_and_leaves_the_value
    compare_set_stores_only_over_what_was_expected
    compare_set_of_a_missing_key_answers_what_was_expected_and_stores_nothing
    multi_get_waits_for_all_and_keeps_their_order
    multi_get_of_nothing_is_nothing
    multi_set_stores_all_and_the_last_of_two
    multi_set_over_a_limit_is_the_callers_mistake_and_stores_nothing
    keys_are_counted_and_listed_in_order
    a_queue_is_first_in_first_out_and_no_key
    queue_pop_waits_for_a_value
    every_queued_value_comes_out_once_whoever_pops
    a_queue_that_another_emptied_first_is_waited_for_again
    wait_and_check_see_a_queue_that_is_not_empty
    whatever_makes_a_key_exist_wakes_a_waiter
    a_compare_set_that_stores_nothing_wakes_nobody
    a_barrier_lets_all_pass_once_the_last_has_arrived
    who_gave_up_at_a_barrier_stays_counted
    a_barrier_serves_once
    a_barrier_of_none_or_over_junk_is_refused
    everything_that_waits_times_out_naming_its_key
    every_refusal_names_its_key
}

//! The table of all scenarios, and what is made of it.

/// Makes a test of each scenario, in a module of its own: `conformance!(mine, Mine::new())`. See
/// [`conformance`](mod@crate::conformance).
#[macro_export]
macro_rules! conformance {
    ($name:ident, $backend:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "the backend may be named by its whole path")]
            use super::*;

            fn run(scenario: $crate::conformance::Scenario) {
                scenario.run($backend);
            }

            $crate::__conformance_groups!(__conformance_tests);
        }
    };
}

/// Makes a test of each scenario, in a module of its own, that runs it in the simulations of some seeds:
/// `simulated_conformance!(mine, 0..3, Mine::on)`, where `Mine::on` makes a backend of a
/// [`Ground`](crate::conformance::Ground). See [`simulated`](crate::conformance::simulated).
#[macro_export]
macro_rules! simulated_conformance {
    ($name:ident, $seeds:expr, $backend:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "the backend may be named by its whole path")]
            use super::*;

            fn run(scenario: $crate::conformance::Scenario) {
                scenario.simulate($seeds, $backend);
            }

            $crate::__conformance_groups!(__conformance_simulated_tests);
        }
    };
}

/// Calls a macro with all groups: how each runs, what it rests on, its scenarios.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_groups {
    ($each:ident) => {
        $crate::$each! {
            task plain(|_| true) {
                a_known_number_of_items_arrives_in_order_with_nones_in_their_places,
                large_and_small_payloads_arrive_whole,
                whatever_dtype_and_shape_is_accepted_survives,
                both_directions_carry_a_known_number_of_items_at_once,
                two_ends_that_both_receive_first_still_get_what_is_sent_then,
                a_close_returns_once_everything_is_out_of_our_hands,
            }
            task items(|wire| wire.close_visible) {
                items_arrive_in_order_with_their_contents,
                none_keeps_its_place_between_tensors,
                every_size_from_nothing_to_64_mib_arrives_whole,
                dtype_and_shape_survive,
                thousands_of_tiny_items_arrive,
                an_item_larger_than_budget_and_window_goes_alone_and_arrives,
                an_item_over_the_limit_is_refused_by_the_sender_and_harms_nothing,
                item_limits_that_differ_are_found_out_before_an_item_arrives,
            }
            task flow(|wire| wire.acknowledged) {
                held_bytes_never_exceed_the_budget_at_either_end,
                held_items_never_exceed_their_limit,
                a_sender_waits_for_a_receiver_that_does_not_take,
                try_send_is_full_without_room_and_takes_again_with_it,
                send_timeout_gives_up_and_loses_nothing,
                recv_timeout_gives_up_and_loses_nothing,
                flush_means_delivered,
                a_permit_holds_room_until_it_is_used_or_dropped,
                a_permit_takes_no_more_than_it_reserved_and_gives_the_rest_back,
                a_cancelled_recv_takes_nothing,
                a_cancelled_reserve_gives_up_its_place_only,
                a_cancelled_send_leaves_no_gap,
            }
            task concurrency(|wire| wire.close_visible) {
                both_directions_flow_at_once,
                a_blocked_direction_does_not_hold_up_the_other,
                one_direction_alone_needs_no_other,
                many_senders_keep_their_own_order_and_lose_nothing,
                many_receivers_take_each_item_once,
                sequence_numbers_are_places_in_the_stream,
            }
            task endings(|wire| wire.close_visible) {
                close_delivers_everything_and_the_receiver_sees_closed_last,
                close_twice_and_from_two_tasks_is_one_close,
                a_closed_pipe_refuses_further_items,
                finish_ends_one_direction_only,
                a_receiver_that_took_everything_and_left_has_lost_nothing,
                closing_against_a_peer_still_sending_tells_it_how_many_were_taken,
                both_close_at_once,
                both_close_at_once_with_full_inboxes,
                a_sender_dropped_without_a_close_is_an_abort,
                an_abort_tells_the_peer_why_and_keeps_account,
                a_receiver_dropped_without_a_close_tells_the_sender,
                a_whole_pipe_dropped_tells_both_directions_of_the_peer,
                a_pipe_dropped_before_the_two_have_met_tells_both_directions_of_the_peer,
            }
            task failures(|wire| wire.acknowledged && wire.detects_death) {
                a_dead_receiver_leaves_every_item_accounted_for,
                a_dead_sender_is_seen_after_the_items_that_arrived,
                a_peers_death_wakes_whoever_waits,
                a_failure_is_the_same_for_every_later_call,
                a_dropped_driver_ends_its_own_pipe_and_loses_no_item_silently,
            }
            task patience(|wire| wire.detects_death) {
                a_slow_consumer_far_past_the_heartbeat_limit_is_not_dead,
                a_consumer_slow_in_the_middle_of_a_large_item_is_not_dead,
                a_long_idle_pipe_still_takes_a_burst,
                a_frozen_peer_is_found_out_by_both_directions,
            }
            task resumption(|wire| wire.resumes) {
                connections_that_break_lose_and_double_nothing,
            }
            thread threads(|wire| wire.close_visible) {
                plain_threads_send_receive_and_close_without_a_runtime,
                many_threads_send_and_receive_on_one_pipe,
            }
            task statistics(|wire| wire.acknowledged) {
                totals_count_what_was_delivered_and_taken,
                gauges_show_what_waits_where,
                waiting_is_counted_as_time_blocked,
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($($kind:ident $group:ident($needs:expr) { $($scenario:ident,)* })*) => {
        $(
            mod $group {
                $(
                    #[test]
                    fn $scenario() {
                        super::run($crate::conformance::scenario(
                            stringify!($group),
                            stringify!($scenario),
                        ));
                    }
                )*
            }
        )*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_simulated_tests {
    // A simulation has one thread.
    (thread $group:ident($needs:expr) { $($scenario:ident,)* } $($rest:tt)*) => {
        $crate::__conformance_simulated_tests! { $($rest)* }
    };
    (task $group:ident($needs:expr) { $($scenario:ident,)* } $($rest:tt)*) => {
        $crate::__conformance_tests! { task $group($needs) { $($scenario,)* } }
        $crate::__conformance_simulated_tests! { $($rest)* }
    };
    () => {};
}

/// The table, for `run.rs`.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_list {
    ($($kind:ident $group:ident($needs:expr) { $($scenario:ident,)* })*) => {
        &[$($(
            Scenario {
                group: stringify!($group),
                name: stringify!($scenario),
                needs: $needs,
                body: body!($kind super::$group::$scenario),
            },
        )*)*]
    };
}

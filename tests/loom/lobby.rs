//! What the operation and the keeper of a process group share.

use std::sync::Arc;

use kvpipe::Error;
use kvpipe::collective::modelling::SharedLobby;
use loom::future::block_on;
use loom::thread;

use crate::support::explore;

const BOUND: usize = 3;

fn cause(what: &str) -> Error {
    Error::Misuse(what.into())
}

#[test]
fn an_arrival_wakes_the_operation_that_waits_for_it() {
    explore("lobby_admit", BOUND, || {
        let lobby = Arc::new(SharedLobby::default());
        let keeper = Arc::clone(&lobby);
        let keeper = thread::spawn(move || (1..=2).for_each(|connection| keeper.admit(connection)));
        assert_eq!(block_on(lobby.arrival()).unwrap(), 1);
        assert_eq!(block_on(lobby.arrival()).unwrap(), 2);
        keeper.join().unwrap();
    });
}

#[test]
fn each_arrival_is_taken_once() {
    explore("lobby_take", BOUND, || {
        let lobby = Arc::new(SharedLobby::default());
        lobby.admit(1);
        lobby.admit(2);
        let keeper = Arc::clone(&lobby);
        let keeper = thread::spawn(move || keeper.take());
        let mut all = vec![block_on(lobby.arrival()).unwrap()];
        all.extend(keeper.join().unwrap());
        all.extend(lobby.take());
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    });
}

#[test]
fn a_failure_wakes_the_operation_and_the_keeper() {
    explore("lobby_fail", BOUND, || {
        let lobby = Arc::new(SharedLobby::default());
        let (keeper, finder) = (Arc::clone(&lobby), Arc::clone(&lobby));
        let keeper = thread::spawn(move || block_on(keeper.failed()).to_string());
        let finder = thread::spawn(move || finder.fail(cause("found")));
        assert_eq!(block_on(lobby.arrival()).unwrap_err().to_string(), "found");
        assert_eq!(keeper.join().unwrap(), "found");
        finder.join().unwrap();
    });
}

#[test]
fn the_first_of_two_failures_is_the_one_that_all_are_told() {
    explore("lobby_fail_twice", BOUND, || {
        let lobby = Arc::new(SharedLobby::default());
        let finder = Arc::clone(&lobby);
        let finder = thread::spawn(move || {
            finder.fail(cause("one"));
            finder.failure().unwrap().to_string()
        });
        lobby.fail(cause("other"));
        let here = block_on(lobby.failed()).to_string();
        assert_eq!(finder.join().unwrap(), here);
    });
}

#[test]
fn an_arrival_beside_a_failure_is_not_lost() {
    explore("lobby_admit_fail", BOUND, || {
        let lobby = Arc::new(SharedLobby::default());
        let (keeper, finder) = (Arc::clone(&lobby), Arc::clone(&lobby));
        let keeper = thread::spawn(move || keeper.admit(1));
        let finder = thread::spawn(move || finder.fail(cause("found")));
        let arrived = block_on(lobby.arrival());
        keeper.join().unwrap();
        finder.join().unwrap();
        // It is with the operation, or left for the keeper to part with.
        assert_eq!(arrived.is_err(), lobby.take().is_some());
    });
}

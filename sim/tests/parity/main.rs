//! The same assertions on the operating system's loopback and in the simulation, so that the fake
//! stays true.

mod cases;
mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kvpipe::net::{Listener, Net, SocketOptions, TokioNet};

use crate::cases::{
    AddressesMirror, Case, ClosedUnread, FullThenRead, GoneBeforeAccept, HalfClose, LargeTransfer, Loopback,
    NeverAccepted, RefusedAfterUnbind, ResetByAbort, ResetTellsTheWriter, WriterDropped, WritingToNobody,
    WrittenAfterEnd,
};
use crate::support::simulated;

/// What a case is run on.
macro_rules! parity {
    ($($name:ident: $case:expr,)*) => {
        mod on_loopback {
            use super::*;
            $(
                #[tokio::test]
                async fn $name() {
                    super::on_loopback($case).await;
                }
            )*
        }

        mod in_simulation {
            use super::*;
            $(
                #[test]
                fn $name() {
                    simulated($case);
                }
            )*
        }
    };
}

parity! {
    a_dropped_writer_ends_its_direction_after_what_was_written: WriterDropped,
    a_shut_down_direction_ends_and_the_other_goes_on: HalfClose,
    an_aborted_connection_is_reset_for_reader_and_writer_and_a_new_one_works: ResetByAbort,
    a_writer_that_is_told_of_a_reset_leaves_an_end_to_the_reader: ResetTellsTheWriter,
    a_close_with_bytes_unread_resets: ClosedUnread,
    a_write_after_the_peers_close_breaks_the_one_after_it: WrittenAfterEnd,
    a_connector_writes_and_goes_before_it_is_accepted: GoneBeforeAccept,
    whoever_waits_to_be_accepted_by_a_listener_that_is_dropped_is_reset: NeverAccepted,
    a_full_window_that_is_read_takes_the_rest: FullThenRead,
    writing_to_a_peer_that_has_gone_fails_in_the_end: WritingToNobody,
    both_ends_name_the_same_addresses: AddressesMirror,
    more_bytes_than_any_buffer_holds_arrive_in_order: LargeTransfer,
    a_port_at_which_nobody_listens_any_more_refuses: RefusedAfterUnbind,
}

async fn on_loopback(case: impl Case) {
    let listener = TokioNet.bind((Ipv4Addr::LOCALHOST, 0).into(), &SocketOptions::default()).await.unwrap();
    let address = Listener::local_addr(&listener).unwrap();
    tokio::join!(case.serve(listener, Loopback), case.visit(TokioNet, address, Loopback));
}

/// Assertions that need one host only, which has this address.
async fn alone<N: Net>(net: N, ip: IpAddr) {
    let options = SocketOptions::default();
    let anywhere = SocketAddr::new(ip, 0);
    let first = net.bind(anywhere, &options).await.unwrap();
    let second = net.bind(anywhere, &options).await.unwrap();
    let [first_at, second_at] = [&first, &second].map(|listener| listener.local_addr().unwrap());
    assert_eq!((first_at.ip(), second_at.ip()), (ip, ip), "it listens on exactly the given address");
    assert_ne!(first_at.port(), 0, "port 0 chooses one");
    assert_ne!(first_at.port(), second_at.port(), "and not one that is taken");

    let taken = net.bind(first_at, &options).await.err().map(|error| error.kind());
    assert_eq!(taken, Some(ErrorKind::AddrInUse));
    let foreign = "203.0.113.1:0".parse().unwrap();
    let foreign = net.bind(foreign, &options).await.err().map(|error| error.kind());
    assert_eq!(foreign, Some(ErrorKind::AddrNotAvailable));

    let (accepted, connected) = tokio::join!(first.accept(), net.connect(first_at, &options));
    drop((accepted.unwrap(), connected.unwrap()));
    drop(first);
    net.bind(first_at, &options).await.expect("a port is free again once its listener is dropped");

    assert_eq!(net.resolve(&ip.to_string(), 7).await.unwrap(), [SocketAddr::new(ip, 7)]);
    let local = net.resolve("localhost", 7).await.unwrap();
    assert!(local.contains(&(Ipv4Addr::LOCALHOST, 7).into()), "{local:?}");
    net.resolve("no-such-host.invalid", 7).await.expect_err("a name that nobody has is an error");
}

#[tokio::test]
async fn addresses_and_names_on_loopback() {
    alone(TokioNet, Ipv4Addr::LOCALHOST.into()).await;
}

#[test]
fn addresses_and_names_in_simulation() {
    for seed in support::SEEDS {
        support::on_one_host(seed, |net| {
            let ip = net.ip();
            alone(net, ip)
        });
        support::on_one_host(seed, |net| alone(net, Ipv4Addr::LOCALHOST.into()));
    }
}

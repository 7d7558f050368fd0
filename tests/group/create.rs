//! Groups over TCP, whose rank 0 serves the store: real sockets on loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::net::{Net, SocketOptions, TokioNet};
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, Store};
use kvpipe::{Error, Result};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{LONG, all_of, config, dropped_after, on_every, poll_once, text};

type TcpGroup = StatelessProcessGroup<TcpStore<TokioNet>>;

const WIRES: [WireMode; 2] = [WireMode::Native, WireMode::Vllm];

fn within_a_minute(wire: WireMode) -> GroupConfig {
    GroupConfig { timeout: LONG, ..config(wire) }
}

/// A port on `host` that is free, and stays so: it is below those that the system hands out, and the next
/// one is another.
async fn free_port(host: &str) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) + 40 * (std::process::id() % 250) as u16;
        let port = 20_000 + offset % 10_000;
        if TcpListener::bind((host, port)).await.is_ok() {
            return port;
        }
    }
}

async fn create(host: &str, port: u16, rank: usize, world_size: usize, wire: WireMode) -> Result<TcpGroup> {
    TcpGroup::create(TokioNet, host, port, rank, world_size, within_a_minute(wire)).await
}

/// All ranks of a group; the later ones come first.
async fn created(host: &str, world_size: usize, wire: WireMode) -> Vec<TcpGroup> {
    let port = free_port(host).await;
    let ranks = (0..world_size).rev().map(|rank| Box::pin(create(host, port, rank, world_size, wire)));
    let mut groups: Vec<_> = all_of(ranks).await.into_iter().map(Result::unwrap).collect();
    groups.reverse();
    groups
}

/// Everybody leaves.
async fn close_all(groups: Vec<TcpGroup>) {
    let closing = groups.into_iter().map(|group| Box::pin(group.close(LONG)));
    all_of(closing).await.into_iter().for_each(Result::unwrap);
}

async fn use_every_method(groups: &[TcpGroup]) {
    let world_size = groups.len();
    let expected: Vec<_> = (0..world_size).map(|rank| text(rank.to_string())).collect();
    for _ in 0..2 {
        on_every(groups, async |group| {
            let rank = group.rank();
            group.barrier().await.unwrap();
            group.send_obj(&expected[rank], (rank + 1) % world_size).await.unwrap();
            let previous = (rank + world_size - 1) % world_size;
            assert_eq!(group.recv_obj(previous).await.unwrap(), expected[previous]);
            assert_eq!(group.all_gather_obj(&expected[rank]).await.unwrap(), expected);
            let given = (rank == 1).then_some(&expected[1]);
            assert_eq!(group.broadcast_obj(given, 1).await.unwrap(), expected[1]);
        })
        .await;
    }
}

#[tokio::test]
async fn every_method_works_over_tcp() {
    for wire in WIRES {
        let groups = created("127.0.0.1", 3, wire).await;
        use_every_method(&groups).await;
        if wire == WireMode::Native {
            let left = groups[0].store().list_keys(LONG).await.unwrap();
            assert!(left.is_empty(), "{left:?}");
        }
        close_all(groups).await;
    }
}

// The defects of vLLM's create (0.8.4 to 0.33).

#[tokio::test]
async fn rank_0_listens_on_the_given_address_and_no_other() {
    let groups = created("127.0.0.1", 2, WireMode::Native).await;
    let mut address = groups[0].server_addr();
    TcpStream::connect(address).await.unwrap();
    // All of 127.0.0.0/8 is this machine's: who listens on every address would answer.
    address.set_ip(Ipv4Addr::new(127, 0, 0, 2).into());
    assert!(TcpStream::connect(address).await.is_err(), "something listens on {address}");
    close_all(groups).await;
}

#[tokio::test]
async fn a_host_may_be_an_ipv6_address() {
    let groups = created("::1", 2, WireMode::Native).await;
    assert!(groups[0].server_addr().is_ipv6());
    use_every_method(&groups).await;
    close_all(groups).await;
}

#[tokio::test]
async fn a_host_may_be_a_name() {
    let groups = created("localhost", 2, WireMode::Native).await;
    use_every_method(&groups).await;
    close_all(groups).await;
}

#[tokio::test]
async fn a_host_that_nobody_can_connect_to_is_refused_at_every_rank() {
    for rank in [0, 1] {
        let refused = |host: &'static str, port| async move {
            let error = create(host, port, rank, 2, WireMode::Native).await.unwrap_err();
            assert!(matches!(error, Error::Misuse(_)), "{error}");
            error.to_string()
        };
        assert_eq!(
            refused("0.0.0.0", 4000).await,
            "other ranks can't connect to 0.0.0.0: give an address of rank 0 that they reach"
        );
        assert!(refused("::", 4000).await.contains("can't connect to ::"));
        assert!(refused("127.0.0.1", 0).await.contains("the store's port"));
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_and_not_somebody_elses_store() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = create("127.0.0.1", port, 0, 2, WireMode::Native).await.unwrap_err();
    assert!(matches!(&error, Error::Io { .. }) && error.to_string().contains(&port.to_string()), "{error}");
}

/// A network in which every name has these addresses.
#[derive(Clone)]
struct Named(Vec<IpAddr>);

impl Net for Named {
    type Stream = TcpStream;
    type Listener = TcpListener;

    async fn connect(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
        TokioNet.connect(address, options).await
    }

    async fn bind(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TcpListener> {
        TokioNet.bind(address, options).await
    }

    async fn resolve(&self, _host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(self.0.iter().map(|address| SocketAddr::new(*address, port)).collect())
    }
}

/// The address at which rank 0, alone in its group, serves the store of a host with such addresses.
async fn served_at(addresses: [&str; 2], port: u16) -> Result<SocketAddr> {
    let net = Named(addresses.iter().map(|address| address.parse().unwrap()).collect());
    let config = within_a_minute(WireMode::Native);
    let group = StatelessProcessGroup::create(net, "node", port, 0, 1, config).await?;
    Ok(group.server_addr())
}

#[tokio::test]
async fn of_a_names_addresses_the_first_of_this_machine_is_served_and_must_be_free() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    // The others would connect to whoever has the first one.
    let error = served_at(["127.0.0.1", "127.0.0.2"], port).await.unwrap_err();
    assert!(matches!(&error, Error::Io { .. }) && error.to_string().contains("127.0.0.1"), "{error}");

    let port = free_port("127.0.0.2").await;
    // An address for documentation only (RFC 5737), which no machine has.
    let served = served_at(["192.0.2.1", "127.0.0.2"], port).await.unwrap();
    assert_eq!(served.to_string(), format!("127.0.0.2:{port}"));
    // A name for every address, such as "0".
    let error = served_at(["0.0.0.0", "127.0.0.2"], port).await.unwrap_err();
    assert!(matches!(error, Error::Misuse(_)), "{error}");
}

#[tokio::test]
async fn rank_0_waits_until_all_are_there_and_says_how_many_are_missing() {
    for wire in WIRES {
        let server = served().await;
        let config = GroupConfig { timeout: Duration::from_millis(50), ..config(wire) };
        let error = TcpGroup::serve(TokioNet, server, 3, config).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(error.to_string().contains("1 of 3 have joined"), "{error}");
    }
}

async fn served() -> TcpStoreServer {
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.unwrap()
}

#[tokio::test]
async fn rank_0_that_serves_the_store_stays_until_the_others_have_left() {
    for wire in WIRES {
        let mut groups = created("127.0.0.1", 2, wire).await;
        let (one, zero) = (groups.pop().unwrap(), groups.pop().unwrap());
        let mut closing = Box::pin(zero.close(LONG));
        for n in 0..20 {
            assert!(poll_once(&mut closing).await.is_none(), "{wire:?}: rank 1 is still there");
            // Its store answers.
            one.store().set(&format!("k{n}"), "v".into(), LONG).await.unwrap();
        }
        let (left, closed) = tokio::join!(one.close(LONG), closing);
        left.unwrap();
        closed.unwrap();
    }
}

#[tokio::test]
async fn rank_0_does_not_stay_longer_than_it_is_told_to() {
    let mut groups = created("127.0.0.1", 2, WireMode::Native).await;
    let (one, zero) = (groups.pop().unwrap(), groups.pop().unwrap());
    let error = zero.close(Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("to leave"), "{error}");
    // The store is gone.
    assert!(one.barrier_timeout(LONG).await.is_err());
}

#[tokio::test]
async fn a_dropped_send_gets_through_when_the_group_is_closed() {
    let mut groups = created("127.0.0.1", 2, WireMode::Native).await;
    let (one, zero) = (groups.pop().unwrap(), groups.pop().unwrap());
    // With the one connection in use, the send has its place, and first connects.
    let mut receiving = Box::pin(one.recv_obj(0));
    assert!(poll_once(&mut receiving).await.is_none());
    assert!(dropped_after(1, one.send_obj(&text("x"), 0)).await.is_none());
    drop(receiving);
    one.close(LONG).await.unwrap();
    assert_eq!(zero.recv_obj(1).await.unwrap(), text("x"));
    zero.close(LONG).await.unwrap();
}

#[tokio::test]
async fn a_dropped_receive_over_tcp_gets_its_object_the_next_time() {
    let groups = created("127.0.0.1", 2, WireMode::Native).await;
    assert!(dropped_after(3, groups[1].recv_obj(0)).await.is_none());
    groups[1].recv_obj_timeout(0, Duration::from_millis(5)).await.unwrap_err();
    groups[0].send_obj(&text("x"), 1).await.unwrap();
    assert_eq!(groups[1].recv_obj(0).await.unwrap(), text("x"));
    close_all(groups).await;
}

#[tokio::test]
async fn many_groups_live_side_by_side_in_one_process() {
    let creating = (0..8).map(|index| Box::pin(created("127.0.0.1", 2, WIRES[index % 2])));
    let worlds = all_of(creating).await;
    all_of(worlds.iter().map(|groups| Box::pin(use_every_method(groups)))).await;
    for groups in worlds {
        close_all(groups).await;
    }
}

//! The network's interfaces, and which of them NCCL would take.
//!
//! Its rule (2.27 to 2.30, `ncclFindInterfaces`): those that `NCCL_SOCKET_IFNAME` names; without it the
//! first of these kinds that there is: names that begin with `ib`, those in the subnet of `NCCL_COMM_ID`,
//! all but `docker`, `lo` and `virbr`, then `docker`, `lo`, `virbr`. Only running ones count, no IPv6
//! loopback, and of each interface its first address; of `NCCL_SOCKET_FAMILY`, if that is set.

use std::env;

use super::report::{Interface, Problem, Subject};
use crate::failure::Failure;

/// All addresses of this machine, in the system's order, which is NCCL's.
pub(super) fn all(problems: &mut Vec<Problem>) -> Result<Vec<Interface>, Failure> {
    let listed = if_addrs::get_if_addrs()
        .map_err(|error| Failure::io("listing this machine's network interfaces", &error))?;
    let interface = |one: if_addrs::Interface| Interface {
        address: one.ip(),
        running: one.is_oper_up(),
        name: one.name,
        nccl: false,
    };
    let mut interfaces: Vec<Interface> = listed.into_iter().map(interface).collect();
    mark(&mut interfaces, |name| env::var(name).ok());
    if !interfaces.iter().any(|one| one.running && !one.address.is_loopback()) {
        problems.push(Problem {
            subject: Subject::Interfaces,
            state: "missing",
            what: "nothing but this machine can be reached".into(),
            costs: "ranks on other machines",
            remedy: "a network; docker run without --network none",
        });
    }
    Ok(interfaces)
}

/// Marks those that NCCL would take; none where `NCCL_COMM_ID` decides, whose subnet only NCCL knows.
fn mark(interfaces: &mut [Interface], variable: impl Fn(&str) -> Option<String>) {
    // Shorter values count for nothing there.
    let value = |name| variable(name).filter(|value: &String| value.len() > 1);
    let family = variable("NCCL_SOCKET_FAMILY");
    if let Some(names) = value("NCCL_SOCKET_IFNAME") {
        mark_named(interfaces, &names, family.as_deref());
        return;
    }
    let unless_decided = |names: &&str| *names == "ib" || value("NCCL_COMM_ID").is_none();
    for names in
        ["ib", "^docker,lo,virbr", "docker", "lo", "virbr"].iter().filter(|names| unless_decided(names))
    {
        if mark_named(interfaces, names, family.as_deref()) {
            return;
        }
    }
}

/// Marks those of these names: beginnings of names, behind `=` whole names, behind `^` those not to take.
/// Whether there is one.
fn mark_named(interfaces: &mut [Interface], names: &str, family: Option<&str>) -> bool {
    let (names, excluded) = names.strip_prefix('^').map_or((names, false), |names| (names, true));
    let (names, whole) = names.strip_prefix('=').map_or((names, false), |names| (names, true));
    // Behind a colon there may be a port of an adapter, which sockets don't have.
    let names: Vec<&str> = names.split(',').filter_map(|name| name.split(':').next()).collect();
    let named = |name: &str| {
        let is = |other: &&str| if whole { name == *other } else { name.starts_with(*other) };
        names.iter().filter(|other| !other.is_empty()).any(is) != excluded
    };
    let mut taken: Vec<String> = Vec::new();
    for one in interfaces {
        let fits = match family {
            Some("AF_INET") => one.address.is_ipv4(),
            Some("AF_INET6") => one.address.is_ipv6(),
            _ => true,
        };
        let no_loopback = one.address.is_ipv4() || !one.address.is_loopback();
        one.nccl = one.running && fits && no_loopback && named(&one.name) && !taken.contains(&one.name);
        if one.nccl {
            taken.push(one.name.clone());
        }
    }
    !taken.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places of those that NCCL takes among `NAME ADDRESS, ...`; a `-` before it is one that is down.
    fn taken(interfaces: &str, variables: &[(&str, &str)]) -> Vec<usize> {
        let parse = |one: &str| {
            let (name, address) = one.trim().split_once(' ').unwrap();
            let (running, name) = (!name.starts_with('-'), name.trim_start_matches('-').to_owned());
            Interface { name, address: address.parse().unwrap(), running, nccl: false }
        };
        let mut interfaces: Vec<_> = interfaces.split(',').map(parse).collect();
        let variable = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        };
        mark(&mut interfaces, variable);
        interfaces.iter().enumerate().filter(|(_, one)| one.nccl).map(|(index, _)| index).collect()
    }

    #[test]
    fn one_kind_comes_after_the_other() {
        let all = "lo 127.0.0.1, docker0 172.17.0.1, virbr0 192.168.122.1, eth0 10.0.0.1, ens5 10.0.1.1, ib0 10.1.0.1";
        assert_eq!(taken(all, &[]), [5]);
        let without = |names: &[&str]| {
            let rest = all.split(", ").filter(|one| !names.iter().any(|name| one.starts_with(name)));
            rest.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(taken(&without(&["ib"]), &[]), [3, 4]);
        assert_eq!(taken(&without(&["ib", "e"]), &[]), [1]);
        assert_eq!(taken(&without(&["ib", "e", "docker"]), &[]), [0]);
        assert_eq!(taken("virbr0 192.168.122.1", &[]), [0]);
    }

    #[test]
    fn what_is_down_or_the_loopback_of_ipv6_is_never_taken() {
        assert_eq!(taken("-eth0 10.0.0.1, lo 127.0.0.1, lo ::1", &[]), [1]);
        assert_eq!(taken("lo ::1", &[]), [0; 0]);
        assert_eq!(taken("-eth0 10.0.0.1", &[("NCCL_SOCKET_IFNAME", "eth0")]), [0; 0]);
    }

    #[test]
    fn the_first_address_of_each_interface_counts_or_the_first_of_its_family() {
        let both = "eth0 10.0.0.1, eth1 10.0.1.1, eth0 fd00::1, eth1 fd00::2";
        assert_eq!(taken(both, &[]), [0, 1]);
        assert_eq!(taken(both, &[("NCCL_SOCKET_FAMILY", "AF_INET6")]), [2, 3]);
        assert_eq!(taken(both, &[("NCCL_SOCKET_FAMILY", "AF_INET")]), [0, 1]);
    }

    #[test]
    fn names_are_beginnings_whole_or_excluded() {
        let all = "lo 127.0.0.1, eth0 10.0.0.1, eth01 10.0.1.1, ib0 10.1.0.1";
        let with = |names| taken(all, &[("NCCL_SOCKET_IFNAME", names)]);
        assert_eq!(with("eth0"), [1, 2]);
        assert_eq!(with("=eth0"), [1]);
        assert_eq!(with("^eth,ib"), [0]);
        assert_eq!(with("^=eth0,lo"), [2, 3]);
        assert_eq!(with("lo,ib0:1"), [0, 3]);
        assert_eq!(with("none"), [0; 0]);
        // One letter is as good as none.
        assert_eq!(with("e"), [3]);
    }

    #[test]
    fn where_an_id_is_given_only_infiniband_is_certain() {
        let id = [("NCCL_COMM_ID", "10.0.0.1:4000")];
        assert_eq!(taken("eth0 10.0.0.1", &id), [0; 0]);
        assert_eq!(taken("eth0 10.0.0.1, ib0 10.1.0.1", &id), [1]);
    }
}

//! Simulated hosts for the cases.

use std::net::SocketAddr;
use std::time::Duration;

use kvpipe::net::{Net, SocketOptions};
use kvpipe_sim::draws::Draws;
use kvpipe_sim::net::{Conditions, Network, SimNet};

use crate::cases::{Case, Simulation};

pub(crate) const SEEDS: std::ops::Range<u64> = 0..20;

/// Simulated time that nothing here comes near.
const LIMIT: Duration = Duration::from_secs(600);

const PORT: u16 = 7000;

/// Runs a case between two simulated hosts, for many seeds.
pub(crate) fn simulated(case: impl Case) {
    for seed in SEEDS {
        let network = Network::new(seed, Conditions::drawn(&Draws::new(seed, "conditions")));
        let mut sim = network.simulation(LIMIT);
        let [server, client] = ["server", "client"].map(|name| sim.lookup(name));
        let net = SimNet::new(&network, "server", server);
        sim.client("server", async move {
            let address = SocketAddr::new(server, PORT);
            let listener = net.bind(address, &SocketOptions::default()).await?;
            case.serve(listener, Simulation).await;
            Ok(())
        });
        let net = SimNet::new(&network, "client", client);
        sim.client("client", async move {
            // The server is there after its first step.
            tokio::time::sleep(Duration::from_millis(1)).await;
            case.visit(net, SocketAddr::new(server, PORT), Simulation).await;
            Ok(())
        });
        if let Err(error) = sim.run() {
            panic!("seed {seed}: {error}\n{}", network.trace().lines().join("\n"));
        }
    }
}

/// Runs a simulation of one host.
pub(crate) fn on_one_host<F>(seed: u64, case: impl FnOnce(SimNet) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let network = Network::new(seed, Conditions::drawn(&Draws::new(seed, "conditions")));
    let mut sim = network.simulation(LIMIT);
    let running = case(SimNet::new(&network, "alone", sim.lookup("alone")));
    sim.client("alone", async move {
        running.await;
        Ok(())
    });
    if let Err(error) = sim.run() {
        panic!("seed {seed}: {error}\n{}", network.trace().lines().join("\n"));
    }
}

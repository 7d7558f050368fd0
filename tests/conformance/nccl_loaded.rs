//! The suite on the nccl transport once more, as a program has it: the driver and NCCL are loaded, and are
//! the fakes'. A child for each group, after each of whose scenarios nothing may be left on the GPU.

use kvpipe_sim::conformance::scenarios;
use tokio::task::spawn_blocking;

use crate::child::nothing_is_left;
use crate::over_nccl::OverNccl;

macro_rules! groups {
    ($($group:ident)*) => {
        const GROUPS: &[&str] = &[$(stringify!($group)),*];

        $(on_fakes!($group, "", async || passes(stringify!($group)).await);)*
    };
}

groups!(plain items flow concurrency endings failures patience resumption threads statistics);

#[test]
fn no_group_is_left_out() {
    let left_out = scenarios().iter().find(|scenario| !GROUPS.contains(&scenario.group()));
    assert!(left_out.is_none(), "{left_out:?}");
}

async fn passes(group: &str) {
    for scenario in scenarios().iter().filter(|scenario| scenario.group() == group) {
        println!("{group}::{}", scenario.name());
        // It has a runtime of its own.
        spawn_blocking(|| scenario.run(OverNccl::loaded())).await.unwrap();
        nothing_is_left("").await;
    }
}

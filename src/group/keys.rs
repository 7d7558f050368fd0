//! The names under which a group's objects and barriers are in the store.

use super::lane::Errand;
use super::{GroupName, WireMode};

/// Whose objects, for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Route {
    /// From one rank to another.
    Direct { src: usize, dst: usize },
    /// From one rank to all others.
    Broadcast { src: usize },
}

/// Chooses names.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) wire: WireMode,
    pub(super) name: GroupName,
}

impl Keys {
    /// Of the `n`th object on a route.
    pub(super) fn object(&self, route: Route, n: u64) -> String {
        let name = &self.name;
        match (self.wire, route) {
            (WireMode::Native, Route::Direct { src, dst }) => format!("kvpipe/{name}/send/{src}/{dst}/{n}"),
            (WireMode::Native, Route::Broadcast { src }) => format!("kvpipe/{name}/broadcast/{src}/{n}"),
            (WireMode::Vllm, Route::Direct { dst, .. }) => format!("send_to/{dst}/{n}"),
            (WireMode::Vllm, Route::Broadcast { src }) => format!("broadcast_from/{src}/{n}"),
        }
    }

    /// What a rank does in the `n`th barrier. Each step may be repeated.
    ///
    /// Rank 0 learns that all have arrived and lets them go; it learns that all have gone, and only
    /// then leaves, and takes what is left with it.
    pub(super) fn native_barrier(&self, n: u64, rank: usize, world_size: usize) -> Vec<Errand> {
        let name = &self.name;
        let arrived = |rank| format!("kvpipe/{name}/barrier/{n}/arrived/{rank}");
        let left = |rank| format!("kvpipe/{name}/barrier/{n}/left/{rank}");
        let go = || format!("kvpipe/{name}/barrier/{n}/go");
        if rank != 0 {
            return vec![
                mark(arrived(rank)),
                Errand::Wait { keys: vec![go()] },
                Errand::Delete { key: arrived(rank) },
                mark(left(rank)),
            ];
        }
        let mut steps = vec![
            Errand::Wait { keys: (1..world_size).map(arrived).collect() },
            mark(go()),
            Errand::Wait { keys: (1..world_size).map(left).collect() },
            Errand::Delete { key: go() },
        ];
        steps.extend((1..world_size).map(|rank| Errand::Delete { key: left(rank) }));
        steps
    }

    /// What a rank does in vLLM's barrier once all know its id, which rank 0 has broadcast under
    /// `announced`. As vLLM's 0.9 to 0.33 (`distributed/utils.py`), but one WAIT names all keys, where
    /// vLLM gets one after the other; and rank 0 deletes the id, too, which everybody has read by then.
    pub(super) fn vllm_barrier(
        id: &str,
        announced: Option<&str>,
        rank: usize,
        world_size: usize,
    ) -> Vec<Errand> {
        let arrival = |rank| format!("arrival_{id}_{rank}");
        let departure = |rank| format!("departure_{id}_{rank}");
        let mut steps = vec![
            mark(arrival(rank)),
            Errand::Wait { keys: (0..world_size).map(arrival).collect() },
            mark(departure(rank)),
        ];
        if let Some(announced) = announced {
            steps.push(Errand::Wait { keys: (0..world_size).map(departure).collect() });
            let marks = (0..world_size).flat_map(|rank| [arrival(rank), departure(rank)]);
            steps.extend(marks.chain([announced.to_owned()]).map(|key| Errand::Delete { key }));
        }
        steps
    }
}

/// vLLM's value; any would do.
fn mark(key: String) -> Errand {
    Errand::Set { key, value: "1".into() }
}

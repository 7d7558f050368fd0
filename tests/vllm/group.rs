//! Objects between our group and vLLM's. Whoever is rank 0 serves the store: we, or PyTorch's classic
//! server.

use kvpipe::wire::{Metadata, Object, UniqueId};
use kvpipe::{DType, Error};
use serde_json::{Value, json};

use crate::alike::{Alike, Said};
use crate::support::{LONG, TcpGroup, object, other_rank, rank_0, server, tensor};

fn text(text: &str) -> Object {
    Object::Text(text.into())
}

/// What Python's `broadcast` gives.
fn text_of_python() -> Object {
    text("from python: é\n")
}

/// What Python's `tell` sends.
fn objects_of_python() -> [Object; 5] {
    let metadata = Metadata::of(&Some(tensor(DType::Float16, &[2, 3])));
    [
        Object::None,
        text_of_python(),
        Object::Metadata(metadata),
        Object::Metadata(Metadata::None),
        Object::Tensor(tensor(DType::Int16, &[3])),
    ]
}

fn objects_of_rust() -> [Object; 5] {
    let mut objects = objects_of_python();
    objects[1] = text("from rust: ü\0");
    objects
}

/// What Python's `id` gives.
fn id() -> Object {
    Object::UniqueId(UniqueId(std::array::from_fn(|index| index as u8)))
}

/// The steps of a rank in Python beside ours, which takes the same.
fn steps(peer: usize) -> String {
    let ours = 1 - peer;
    format!(
        "group barrier:3 tell:{ours} hear:{ours} broadcast:{peer} broadcast:{ours} gather barrier \
         id:{peer} id:{ours} barrier:2"
    )
}

async fn takes_the_same_steps(group: TcpGroup) {
    let (rank, peer) = (group.rank(), 1 - group.rank());
    for _ in 0..3 {
        group.barrier().await.unwrap();
    }
    for object in objects_of_rust() {
        group.send_obj(&object, peer).await.unwrap();
    }
    for expected in objects_of_python() {
        assert_eq!(group.recv_obj(peer).await.unwrap(), expected);
    }
    assert_eq!(group.broadcast_obj(None, peer).await.unwrap(), text_of_python());
    group.broadcast_obj(Some(&text("from rust")), rank).await.unwrap();
    let gathered = group.all_gather_obj(&text("rust")).await.unwrap();
    assert_eq!((&gathered[peer], &gathered[rank]), (&text(&format!("rank {peer}")), &text("rust")));
    group.barrier().await.unwrap();
    assert_eq!(group.broadcast_obj(None, peer).await.unwrap(), id());
    group.broadcast_obj(Some(&id()), rank).await.unwrap();
    for _ in 0..2 {
        group.barrier().await.unwrap();
    }
    group.close(LONG).await.unwrap();
}

fn received_the_same(said: &Said, peer: usize) {
    let mut gathered = [text("rust"), text("rust")];
    gathered[peer] = text(&format!("rank {peer}"));
    let mut expected: Vec<Value> = objects_of_rust().iter().map(object).collect();
    expected.extend([object(&text_of_python()), object(&text("from rust"))]);
    expected.extend([json!(gathered.each_ref().map(object)), object(&id()), object(&id())]);
    assert_eq!(said.received(), expected.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn our_rank_0_and_a_python_rank_1_exchange_every_kind_of_object() {
    let server = server().await;
    let Some(python) = Alike::start(1, 2, server.local_addr().port(), &steps(1)) else { return };
    let ours = async { takes_the_same_steps(rank_0(server, 2).await).await };
    let ((), said) = python.beside(ours).await;
    received_the_same(&said, 1);
}

#[tokio::test]
async fn our_rank_1_and_a_python_rank_0_exchange_every_kind_of_object() {
    let Some(mut python) = Alike::start(0, 2, 0, &steps(0)) else { return };
    let port = python.port().await;
    let ours = async { takes_the_same_steps(other_rank(port, 1, 2).await).await };
    let ((), said) = python.beside(ours).await;
    received_the_same(&said, 0);
}

const STEPS_OF_THREE: &str =
    "group barrier:2 broadcast:0 broadcast:1 broadcast:2 gather barrier gather barrier:3";

/// What our rank of three calls itself in `gather`.
fn name(rank: usize) -> Object {
    text(&format!("rank {rank}"))
}

async fn takes_the_steps_of_three(group: TcpGroup) {
    let barriers = async |count| {
        for _ in 0..count {
            group.barrier().await.unwrap();
        }
    };
    let gather = async || {
        let gathered = group.all_gather_obj(&name(group.rank())).await.unwrap();
        assert_eq!(gathered, [0, 1, 2].map(name));
    };
    barriers(2).await;
    for src in 0..3 {
        let own = text("from rust");
        let given = group.broadcast_obj((src == group.rank()).then_some(&own), src).await.unwrap();
        assert_eq!(given, if src == group.rank() { own } else { text_of_python() });
    }
    gather().await;
    barriers(1).await;
    gather().await;
    barriers(3).await;
    group.close(LONG).await.unwrap();
}

fn received_as_one_of_three(said: &Said, ours: usize) {
    let gathered = json!([0, 1, 2].map(name).each_ref().map(object));
    let broadcast = |src| object(&if src == ours { text("from rust") } else { text_of_python() });
    let expected = [broadcast(0), broadcast(1), broadcast(2), gathered.clone(), gathered];
    assert_eq!(said.received(), expected.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn our_rank_0_of_three_with_two_pythons() {
    let server = server().await;
    let port = server.local_addr().port();
    let Some(one) = Alike::start(1, 3, port, STEPS_OF_THREE) else { return };
    let Some(two) = Alike::start(2, 3, port, STEPS_OF_THREE) else { return };
    let ours = async { takes_the_steps_of_three(rank_0(server, 3).await).await };
    let (((), one), two) = two.beside(one.beside(ours)).await;
    received_as_one_of_three(&one, 0);
    received_as_one_of_three(&two, 0);
}

#[tokio::test]
async fn our_rank_1_of_three_with_two_pythons() {
    let Some(mut zero) = Alike::start(0, 3, 0, STEPS_OF_THREE) else { return };
    let port = zero.port().await;
    let Some(two) = Alike::start(2, 3, port, STEPS_OF_THREE) else { return };
    let ours = async { takes_the_steps_of_three(other_rank(port, 1, 3).await).await };
    let (((), two), zero) = zero.beside(two.beside(ours)).await;
    received_as_one_of_three(&zero, 1);
    received_as_one_of_three(&two, 1);
}

/// vLLM's keys don't say who sent, and its ranks overwrite what others have sent.
#[tokio::test]
async fn a_second_python_that_sends_to_us_is_refused_and_so_is_sending_where_a_python_sends() {
    let server = server().await;
    let port = server.local_addr().port();
    let Some(one) = Alike::start(1, 3, port, "group tell:0 tell:2 barrier barrier") else { return };
    let Some(two) = Alike::start(2, 3, port, "group barrier hear:1 tell:0 barrier") else { return };
    let ours = async {
        let group = rank_0(server, 3).await;
        group.barrier().await.unwrap();
        for expected in objects_of_python() {
            assert_eq!(group.recv_obj(1).await.unwrap(), expected);
        }
        let refused = [group.recv_obj(2).await.map(drop), group.send_obj(&Object::None, 2).await];
        for (refused, why) in refused.into_iter().zip(["can't from rank 2", "can't send to rank 2"]) {
            let error = refused.unwrap_err();
            assert!(matches!(&error, Error::Misuse(what) if what.contains(why)), "{error}");
        }
        group.barrier().await.unwrap();
        group.close(LONG).await.unwrap();
    };
    let (((), _), two) = two.beside(one.beside(ours)).await;
    assert_eq!(
        two.received(),
        objects_of_python().iter().map(object).collect::<Vec<_>>().iter().collect::<Vec<_>>()
    );
}

//! Items between our pipe and vLLM's. Whoever is rank 0 serves the store: we, or PyTorch's classic server.

use kvpipe::{DType, Error, Tensor};
use serde_json::Value;

use crate::alike::{Alike, Said};
use crate::support::{LOADABLE, Ours, described, items, other_rank, rank_0, server, tensor};

/// Our rank 0 beside a rank 1 in Python.
async fn ours_serves<T>(steps: &str, ours: impl AsyncFnOnce(Ours) -> T) -> Option<(T, Said)> {
    let server = server().await;
    let python = Alike::start(1, 2, server.local_addr().port(), steps)?;
    Some(python.beside(async { ours(Ours::meet(rank_0(server, 2).await).await).await }).await)
}

/// Our rank 1 beside a rank 0 in Python.
async fn python_serves<T>(steps: &str, ours: impl AsyncFnOnce(Ours) -> T) -> Option<(T, Said)> {
    let mut python = Alike::start(0, 2, 0, steps)?;
    let port = python.port().await;
    Some(python.beside(async { ours(Ours::meet(other_rank(port, 1, 2).await).await).await }).await)
}

/// How many items Python's `send-items` are.
const ITEMS_OF_PYTHON: usize = 118;

/// Takes all of Python's items.
async fn receives(ours: Ours) -> Vec<Value> {
    let received = ours.receive(ITEMS_OF_PYTHON).await;
    ours.close().await;
    received
}

/// Sends all of ours.
async fn sends(ours: Ours) {
    ours.send_all(&items()).await;
    ours.close().await;
}

fn is_what_python_sent(received: &[Value], said: &Said) {
    let sent = said.sent();
    assert_eq!(sent.len(), ITEMS_OF_PYTHON);
    for (index, (received, sent)) in received.iter().zip(sent).enumerate() {
        assert_eq!(received, sent, "item {index}");
    }
    for dtype in LOADABLE.into_iter().chain([DType::Float8E4m3fn, DType::UInt64]) {
        assert!(received.iter().any(|item| item["dtype"] == dtype.name()), "no {dtype}");
    }
}

fn is_what_we_sent(said: &Said) {
    let received = said.received();
    assert_eq!(received.len(), items().len());
    for (index, (received, sent)) in received.into_iter().zip(items()).enumerate() {
        assert_eq!(*received, described(&sent), "item {index}");
    }
}

#[tokio::test]
async fn our_rank_0_receives_what_a_python_rank_1_sends() {
    let Some((received, said)) = ours_serves("pipe send-items close", receives).await else { return };
    is_what_python_sent(&received, &said);
}

#[tokio::test]
async fn our_rank_1_receives_what_a_python_rank_0_sends() {
    let Some((received, said)) = python_serves("pipe send-items close", receives).await else { return };
    is_what_python_sent(&received, &said);
}

#[tokio::test]
async fn a_python_rank_1_receives_what_our_rank_0_sends() {
    let steps = format!("pipe receive:{} close", items().len());
    let Some(((), said)) = ours_serves(&steps, sends).await else { return };
    is_what_we_sent(&said);
}

#[tokio::test]
async fn a_python_rank_0_receives_what_our_rank_1_sends() {
    let steps = format!("pipe receive:{} close", items().len());
    let Some(((), said)) = python_serves(&steps, sends).await else { return };
    is_what_we_sent(&said);
}

#[tokio::test]
async fn both_directions_of_a_ring_of_two_at_once() {
    let both_at_once = async |ours: Ours| {
        let items = items();
        let ((), received) = tokio::join!(ours.send_all(&items), ours.receive(ITEMS_OF_PYTHON));
        ours.close().await;
        received
    };
    let steps = format!("pipe send-items receive:{} close", items().len());
    let Some((received, said)) = ours_serves(&steps, both_at_once).await else { return };
    is_what_python_sent(&received, &said);
    is_what_we_sent(&said);
}

#[tokio::test]
async fn a_dtype_that_torch_cant_load_back_is_refused_and_the_pipe_goes_on() {
    let last = Some(tensor(DType::UInt8, &[3]));
    let refused = async |ours: Ours| {
        for dtype in [DType::Float8E4m3fn, DType::UInt16, DType::UInt32, DType::UInt64, DType::Complex32] {
            let error = ours.pipe.send(Some(tensor(dtype, &[2, 3]))).await.unwrap_err();
            assert!(matches!(&error, Error::Misuse(why) if why.contains(dtype.name())), "{error}");
            // As its own bytes it can go.
            let bytes = tensor(dtype, &[2, 3]).bytes().unwrap().clone();
            ours.send_all(&[Some(Tensor::new(DType::UInt8, [bytes.len()], bytes).unwrap())]).await;
        }
        ours.send_all(&[None, last.clone()]).await;
        ours.close().await;
    };
    let Some(((), said)) = ours_serves("pipe receive:7 close", refused).await else { return };
    let received = said.received();
    assert_eq!(received[0], &described(&Some(tensor(DType::UInt8, &[6]))));
    assert_eq!(received[5..], [&Value::Null, &described(&last)]);
}

#[tokio::test]
async fn our_rank_0_keeps_the_store_until_its_python_client_has_left() {
    let server = server().await;
    let steps = "pipe wait receive:2 close";
    let Some(mut python) = Alike::start(1, 2, server.local_addr().port(), steps) else { return };
    let ours = Ours::meet(rank_0(server, 2).await).await;
    let sent = [Some(tensor(DType::Float32, &[1 << 18])), None];
    ours.send_all(&sent).await;
    let leaving = tokio::spawn(ours.close());
    // It comes to where it waits for the others before Python has asked for anything.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert!(!leaving.is_finished(), "python has not received anything");
    python.goes_on().await;
    let (left, said) = python.beside(leaving).await;
    left.unwrap();
    assert_eq!(said.received(), [&described(&sent[0]), &Value::Null]);
}

//! What a prefill and a decode worker of vLLM say to each other.
//!
//! vLLM's `SimpleBuffer` has two pipes between the two. For each request the decode worker sends a signal
//! over the first and what it looks for over the second: the tokens, and which of them count. The prefill
//! worker answers over the second with five tensors (tokens, which of them count, keys, values, hidden
//! states), or with five Nones if it has none for these tokens. A None as a signal is the end. Connectors
//! that go layer by layer send many small tensors in a row instead.

use kvpipe::{Error, Item, Result, Tensor};

use super::Workload;
use crate::draws::Draws;
use crate::world::{Rank, ReceivingEnd, SendingEnd};

/// Both ends that a rank has of each of the two pipes.
struct Pipes {
    /// Whether answers come layer by layer, and how many there are.
    layers: Option<usize>,
    /// How many items an answer has that is no miss.
    answer_items: usize,
    signal: (SendingEnd, ReceivingEnd),
    data: (SendingEnd, ReceivingEnd),
}

const PREFILL: usize = 0;

const LAYERS: usize = 2;
const HEADS: usize = 2;
const HEAD_SIZE: usize = 16;
const HIDDEN_SIZE: usize = 64;

/// One answer in so many is a miss.
const MISSES: u64 = 10;

/// How many Nones that is.
const MISS_ITEMS: usize = 5;

/// Tokens, which of them count, keys, values, hidden states.
const HIT_ITEMS: usize = 5;

pub(super) async fn run(workload: &Workload, rank: Rank, layers: Option<usize>) -> Result<()> {
    let store = rank.store().await?;
    let open = async |name| match workload.settings.open(&rank, &store, name, [true; 2]).await? {
        (Some(sender), Some(receiver)) => Ok((sender, receiver)),
        _ => Err(Error::Bug("a pipe without one of its ends".into())),
    };
    let answer_items = layers.map_or(HIT_ITEMS, |layers| 2 * layers);
    let pipes = Pipes { layers, answer_items, signal: open("signal").await?, data: open("data").await? };
    let served = match rank.number() {
        PREFILL => pipes.prefill(&rank).await,
        _ => pipes.decode(workload, &rank).await,
    };
    for (sender, receiver) in [&pipes.signal, &pipes.data] {
        sender.finish();
        // What the peer said last is taken before its end is looked at.
        while served.is_ok() && receiver.recv().await.is_ok() {}
        // How it ended, the oracle judges.
        let _ = sender.close().await;
        receiver.close().await;
    }
    Ok(())
}

impl Pipes {
    async fn decode(&self, workload: &Workload, rank: &Rank) -> Result<()> {
        let draws = rank.draws().fork("requests");
        // One item in seven is a request's own.
        for _ in 0..workload.items.div_ceil(7) {
            let tokens = tokens(&draws, draws.bytes(1..=64))?;
            self.signal.0.send(Some(Tensor::from_slice([1], &[0_i64])?)).await?;
            self.data.0.send(tokens.clone()).await?;
            self.data.0.send(mask(&tokens)?).await?;
            let first = self.data.1.recv().await?;
            let missed = first.is_none();
            rank.happened(if missed { "vLLM: a miss, five Nones" } else { "vLLM: a hit" });
            let rest = if missed { MISS_ITEMS } else { self.answer_items } - 1;
            let mut answer = vec![first];
            for _ in 0..rest {
                answer.push(self.data.1.recv().await?);
            }
            let fits = match (missed, self.layers) {
                (true, _) => answer.iter().all(Option::is_none),
                (false, None) => answer[0] == tokens && answer.iter().all(Option::is_some),
                (false, Some(_)) => answer.iter().all(Option::is_some),
            };
            rank.expect(fits, || format!("{tokens:?} was answered by {answer:?}"));
            if draws.one_in(4) {
                tokio::time::sleep(std::time::Duration::from_millis(draws.between(1..=300))).await;
            }
        }
        self.signal.0.send(None).await.map(drop)
    }

    async fn prefill(&self, rank: &Rank) -> Result<()> {
        let draws = rank.draws().fork("answers");
        while self.signal.1.recv().await?.is_some() {
            let (asked, _which) = (self.data.1.recv().await?, self.data.1.recv().await?);
            if draws.one_in(MISSES) {
                for _ in 0..MISS_ITEMS {
                    self.data.0.send(None).await?;
                }
                continue;
            }
            if let Some(layers) = self.layers {
                // Keys and values of each layer, some tokens of 2 KiB.
                for _ in 0..2 * layers {
                    self.data.0.send(half(&draws, &[draws.bytes(1..=4), 1024])?).await?;
                }
                continue;
            }
            let count = asked.as_ref().map_or(0, |tensor| tensor.shape().dims()[0]);
            let cache = || half(&draws, &[LAYERS, count, HEADS, HEAD_SIZE]);
            let (which, hidden) = (mask(&asked)?, half(&draws, &[count, HIDDEN_SIZE])?);
            for item in [asked, which, cache()?, cache()?, hidden] {
                self.data.0.send(item).await?;
            }
        }
        Ok(())
    }
}

fn tokens(draws: &Draws, count: usize) -> Result<Item> {
    let tokens: Vec<i64> = (0..count).map(|_| draws.between(0..=128_000).cast_signed()).collect();
    Ok(Some(Tensor::from_slice([count], &tokens)?))
}

/// Which tokens count: all.
fn mask(tokens: &Item) -> Result<Item> {
    let count = tokens.as_ref().map_or(0, |tensor| tensor.shape().dims()[0]);
    Ok(Some(Tensor::from_slice([count], &vec![true; count])?))
}

fn half(draws: &Draws, dims: &[usize]) -> Result<Item> {
    let count: usize = dims.iter().product();
    let first = draws.between(0..=0xFFFF);
    let values: Vec<u16> = (0..count as u64).map(|at| ((first + at * 31) & 0x3FFF) as u16).collect();
    Ok(Some(Tensor::from_slice(dims, &values)?))
}

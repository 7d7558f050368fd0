//! What each rank of a demo sends.

use bytes::Bytes;
use kvpipe::entropy::Entropy;
use kvpipe::tensor::{BufferMut, DType, Shape, Tensor, safetensors};

use crate::args::{ModelName, WorkloadArgs};
use crate::failure::Failure;
use crate::units::{Count, Size};

/// The requests of one rank. Whoever makes it again for the same rank gets the same bytes.
pub(crate) struct Workload {
    pub(crate) requests: Vec<Request>,
    description: String,
}

/// Tensors, and behind them a None.
pub(crate) struct Request {
    pub(crate) parts: Vec<Part>,
}

/// A tensor, and what to call it.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
}

/// The shape of a model's KV cache.
struct Model {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    /// The lengths of the requests if none is asked for.
    requests: &'static [usize],
}

impl ModelName {
    /// Layers, KV heads and head dimension are those of the published `config.json` of Llama 3:
    /// `num_hidden_layers`, `num_key_value_heads`, and `hidden_size / num_attention_heads`.
    fn model(self) -> Model {
        // Prompts between a short and a long question. The longest decides how much memory a rank
        // needs, as it keeps a request until it has checked it.
        const PROMPTS: &[usize] = &[512, 1024, 1536, 768, 1280];
        match self {
            Self::Llama3_8b => Model { layers: 32, kv_heads: 8, head_dim: 128, requests: PROMPTS },
            Self::Llama3_70b => Model { layers: 80, kv_heads: 8, head_dim: 128, requests: PROMPTS },
            Self::Tiny => Model { layers: 2, kv_heads: 2, head_dim: 8, requests: &[3, 17, 1, 64] },
        }
    }
}

impl Model {
    fn tensor_bytes(&self, tokens: usize) -> usize {
        tokens * self.kv_heads * self.head_dim * DType::BFloat16.item_bytes()
    }

    fn lengths(&self, tokens: Option<u32>) -> Vec<usize> {
        tokens.map_or_else(|| self.requests.to_vec(), |tokens| vec![tokens as usize])
    }
}

/// Larger than most caches, so that sending reads from memory, as sending a real KV cache does.
const BLOCK_BYTES: usize = 64 << 20;

/// Each round through the block begins elsewhere within so many bytes, so that its windows differ
/// from those of the round before.
const SHIFT_BYTES: usize = 64;

impl Workload {
    /// What `rank` sends.
    pub(crate) fn new(args: &WorkloadArgs, rank: usize) -> Result<Self, Failure> {
        match &args.input {
            Some(path) => {
                let parts = safetensors::read(path)?.into_iter();
                let parts: Vec<Part> =
                    parts.map(|(name, tensor)| Part { name: format!("tensor {name:?}"), tensor }).collect();
                let what = format!("{} of {}", Count(parts.len() as u64, "tensor"), path.display());
                Ok(Self::of(vec![Request { parts }], &what))
            }
            None => Self::pattern(args, rank),
        }
    }

    /// The KV caches of a model: consecutive windows of a block of random bytes that belongs to the
    /// rank. Making and comparing them costs no more than reading memory.
    fn pattern(args: &WorkloadArgs, rank: usize) -> Result<Self, Failure> {
        let model = args.model.model();
        let lengths = model.lengths(args.tokens);
        let longest = lengths.iter().map(|&tokens| model.tensor_bytes(tokens)).max().unwrap_or(0);
        let total: usize = lengths.iter().map(|&tokens| 2 * model.layers * model.tensor_bytes(tokens)).sum();
        let mut windows = Windows::new(random_block(rank, total.min(BLOCK_BYTES).max(longest))?);
        let mut requests = Vec::new();
        for &tokens in &lengths {
            let shape = Shape::new(&[tokens, model.kv_heads, model.head_dim])?;
            let mut parts = Vec::new();
            for layer in 0..model.layers {
                for kind in ["K", "V"] {
                    let bytes = windows.next(model.tensor_bytes(tokens));
                    let tensor = Tensor::new(DType::BFloat16, shape, bytes)?;
                    parts.push(Part { name: format!("layer {layer} {kind}"), tensor });
                }
            }
            requests.push(Request { parts });
        }
        let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
        let Model { layers, kv_heads, head_dim, .. } = model;
        let what = format!(
            "{} of {} tokens; K and V of {layers} layers, bf16 [tokens, {kv_heads}, {head_dim}]",
            Count(lengths.len() as u64, "request"),
            lengths.join(", "),
        );
        Ok(Self::of(requests, &what))
    }

    fn of(requests: Vec<Request>, what: &str) -> Self {
        let mut workload = Self { requests, description: String::new() };
        workload.description = format!("{what}, and a None after each: {}", Size(workload.bytes()));
        workload
    }

    /// The payload bytes of everything.
    pub(crate) fn bytes(&self) -> u64 {
        self.requests.iter().map(Request::bytes).sum()
    }

    /// In words.
    pub(crate) fn describe(&self) -> &str {
        &self.description
    }
}

impl Request {
    /// The payload bytes of its tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.tensor.byte_len() as u64).sum()
    }
}

/// The tokens of all requests of a rank; a file has none.
pub(crate) fn tokens(args: &WorkloadArgs) -> Option<usize> {
    args.input.is_none().then(|| args.model.model().lengths(args.tokens).iter().sum())
}

fn random_block(rank: usize, len: usize) -> Result<Bytes, Failure> {
    const CHUNK: usize = 4096;
    let entropy = Entropy::seeded(rank as u64);
    let mut block = BufferMut::zeroed(len + SHIFT_BYTES)?;
    for chunk in block.chunks_mut(CHUNK) {
        chunk.copy_from_slice(&entropy.bytes::<CHUNK>()?[..chunk.len()]);
    }
    Ok(block.freeze())
}

/// Hands out one part of a block after another, and begins again a little further on.
struct Windows {
    block: Bytes,
    next: usize,
    rounds: usize,
}

impl Windows {
    fn new(block: Bytes) -> Self {
        Self { block, next: 0, rounds: 0 }
    }

    /// The next `len` bytes; `len` is at most that of the block less [`SHIFT_BYTES`].
    fn next(&mut self, len: usize) -> Bytes {
        if self.next + len > self.block.len() {
            self.rounds += 1;
            self.next = (self.rounds * 2) % SHIFT_BYTES;
        }
        let window = self.block.slice(self.next..self.next + len);
        self.next += len;
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(tokens: Option<u32>) -> WorkloadArgs {
        WorkloadArgs { model: ModelName::Tiny, tokens, input: None }
    }

    fn tensors(workload: &Workload) -> Vec<&Tensor> {
        workload.requests.iter().flat_map(|request| &request.parts).map(|part| &part.tensor).collect()
    }

    #[test]
    fn a_rank_repeats_its_bytes_and_two_ranks_differ() {
        let of = |rank| Workload::new(&tiny(Some(5)), rank).unwrap();
        assert_eq!(tensors(&of(0)), tensors(&of(0)));
        assert_ne!(tensors(&of(0)), tensors(&of(1)));
    }

    #[test]
    fn no_two_tensors_of_a_request_have_the_same_bytes() {
        let workload = Workload::new(&tiny(Some(5)), 0).unwrap();
        let mut payloads: Vec<_> =
            tensors(&workload).iter().map(|tensor| tensor.bytes().unwrap().clone()).collect();
        payloads.sort();
        payloads.dedup();
        assert_eq!(payloads.len(), 4);
    }

    #[test]
    fn windows_that_begin_again_are_shifted() {
        let len = 1000;
        let mut windows = Windows::new(random_block(0, len).unwrap());
        let first = windows.next(len);
        assert_ne!(windows.next(len), first);
    }

    #[test]
    fn llamas_tokens_have_the_size_that_is_advertised() {
        let bytes = |model: ModelName| 2 * model.model().layers * model.model().tensor_bytes(1);
        assert_eq!(bytes(ModelName::Llama3_8b), 128 << 10);
        assert_eq!(bytes(ModelName::Llama3_70b), 320 << 10);
        assert_eq!(bytes(ModelName::Tiny), 128);
    }
}

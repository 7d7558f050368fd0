//! How the two processes keep in step: the sender says what comes next, and the receiver answers when
//! it is ready and when it has it.
//!
//! A connection of its own, so that neither the pipe nor the bare socket carries anything but what is
//! measured. Each answer is one byte.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::failure::Failure;

/// What the receiver is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// Open a pipe in the place of the last one.
    Open(PipeSettings),
    /// Receive from the bare socket.
    Bare { size: usize, items: u64, read_cap: usize },
    /// Send back what the bare socket brings.
    BareEcho { size: usize, count: u64 },
    /// Receive by NCCL alone; answer once all are here.
    Raw { size: usize, items: u64, group_items: usize },
    /// Receive by NCCL alone, one at a time; answer each.
    RawPaced { size: usize, items: u64 },
    /// Send back what NCCL alone brings.
    RawEcho { size: usize, count: u64 },
    /// Receive from the pipe; answer once all are here.
    Pipe { pipe: usize, items: u64 },
    /// Receive from the pipe; answer each.
    PipePaced { pipe: usize, items: u64 },
    /// Send back what the pipe brings.
    PipeEcho { pipe: usize, count: u64 },
    /// Close all pipes and give all memory back.
    Clear,
    /// Receive from the pipe and keep nothing; answer once all are here.
    Drain { pipe: usize, items: u64 },
}

/// How both ends open a pipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PipeSettings {
    /// Of this pipe alone, so that both ends mean the same one.
    pub(super) group: String,
    pub(super) checksum: bool,
    pub(super) buffer_bytes: usize,
}

/// An end of the connection.
#[derive(Debug)]
pub(super) struct Control {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    patience: Duration,
}

impl Control {
    pub(super) fn new(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader: BufReader::new(reader), writer, patience })
    }

    /// To the receiver at `address`.
    pub(super) async fn connect(address: SocketAddr, patience: Duration) -> Result<Self, Failure> {
        let connected = async { Self::new(TcpStream::connect(address).await?, patience) };
        connected
            .await
            .map_err(|error| Failure::io(format!("connecting to the receiver at {address}"), &error))
    }

    /// Tells the receiver what comes next, and waits until it is ready.
    pub(super) async fn begin(&mut self, step: &Step) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(step)
            .map_err(|error| Failure::new(format!("bug in kvpipe: a step is not JSON: {error}")))?;
        line.push(b'\n');
        self.writer.write_all(&line).await.map_err(|error| lost("the receiver", &error))?;
        self.answered(step).await
    }

    /// Waits for an answer of the receiver.
    pub(super) async fn answered(&mut self, step: &Step) -> Result<(), Failure> {
        match timeout(self.patience, self.reader.read_u8()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(lost("the receiver", &error)),
            Err(_) => {
                let waited = self.patience.as_secs();
                Err(Failure::new(format!("the receiver did not answer {step:?} within {waited} s")))
            }
        }
    }

    /// What comes next; None when the sender has left.
    pub(super) async fn step(&mut self) -> Result<Option<Step>, Failure> {
        let mut line = Vec::new();
        let read = timeout(self.patience, self.reader.read_until(b'\n', &mut line)).await;
        let read = read.map_err(|_| {
            Failure::new(format!("the sender said nothing for {} s", self.patience.as_secs()))
        })?;
        if read.map_err(|error| lost("the sender", &error))? == 0 {
            return Ok(None);
        }
        let step = serde_json::from_slice(&line);
        step.map(Some).map_err(|error| Failure::new(format!("bug in kvpipe: no step: {error}")))
    }

    pub(super) async fn answer(&mut self) -> Result<(), Failure> {
        self.writer.write_u8(1).await.map_err(|error| lost("the sender", &error))
    }
}

fn lost(peer: &str, error: &io::Error) -> Failure {
    Failure::io(format!("talking with {peer}"), error)
}

//! A network in memory whose connections break after an exact number of bytes. With a paused clock
//! every run of it is the same.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use kvpipe::net::{Listener, Net, SocketOptions, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use crate::proxy::Way;

/// Bytes that are on their way in one direction at most: fewer than the large item of the exchanges
/// has, so that writers must wait.
const CAPACITY: usize = 4096;

/// What becomes of the bytes that are on their way when a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// They are gone, and both ends are told of a reset. The bytes of the cut are counted as they
    /// are read.
    Everything,
    /// They arrive, and then both ends read the end of the stream. The bytes of the cut are counted
    /// as they are written.
    Nothing,
}

/// When a connection breaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) way: Way,
    pub(crate) loss: Loss,
    pub(crate) after_bytes: u64,
}

/// The network.
#[derive(Clone, Default)]
pub(crate) struct CuttingNet(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    listeners: BTreeMap<SocketAddr, mpsc::UnboundedSender<CutStream>>,
    ports: u16,
    /// What is to befall the n-th connection.
    cuts: Vec<Cut>,
    connections_max: Option<usize>,
    cables: Vec<Arc<Mutex<Cable>>>,
}

impl CuttingNet {
    /// The n-th connection breaks at the n-th of `cuts`, the others never.
    pub(crate) fn new(cuts: &[Cut]) -> Self {
        Self(Arc::new(Mutex::new(State { cuts: cuts.to_vec(), ..State::default() })))
    }

    /// The same, but more than `connections` are refused.
    pub(crate) fn limited(cuts: &[Cut], connections: usize) -> Self {
        let net = Self::new(cuts);
        net.0.lock().unwrap().connections_max = Some(connections);
        net
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.0.lock().unwrap().cables.len()
    }

    /// How many of them broke.
    pub(crate) fn broken(&self) -> usize {
        let state = self.0.lock().unwrap();
        state.cables.iter().filter(|cable| cable.lock().unwrap().broken.is_some()).count()
    }

    /// Bytes read from the n-th connection, each way.
    pub(crate) fn read(&self, connection: usize) -> [u64; 2] {
        let state = self.0.lock().unwrap();
        let cable = state.cables[connection].lock().unwrap();
        [cable.lanes[0].read, cable.lanes[1].read]
    }
}

impl Net for CuttingNet {
    type Stream = CutStream;
    type Listener = CutListener;

    async fn connect(&self, address: SocketAddr, _: &SocketOptions) -> io::Result<CutStream> {
        let mut state = self.0.lock().unwrap();
        let connection = state.cables.len();
        let full = state.connections_max.is_some_and(|limit| connection >= limit);
        let Some(listener) = state.listeners.get(&address).filter(|_| !full) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let cable = Cable { cut: state.cuts.get(connection).copied(), ..Cable::default() };
        let cable = Arc::new(Mutex::new(cable));
        let ends = [Way::Forth, Way::Back].map(|way| CutStream { cable: Arc::clone(&cable), way, address });
        let [near, far] = ends;
        listener.send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        state.cables.push(cable);
        Ok(near)
    }

    async fn bind(&self, address: SocketAddr, _: &SocketOptions) -> io::Result<CutListener> {
        let mut state = self.0.lock().unwrap();
        state.ports += 1;
        let address = SocketAddr::new(address.ip(), state.ports);
        let (sender, receiver) = mpsc::unbounded_channel();
        state.listeners.insert(address, sender);
        Ok(CutListener { net: self.clone(), address, incoming: tokio::sync::Mutex::new(receiver) })
    }

    async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) struct CutListener {
    net: CuttingNet,
    address: SocketAddr,
    incoming: tokio::sync::Mutex<mpsc::UnboundedReceiver<CutStream>>,
}

impl Listener for CutListener {
    type Stream = CutStream;

    async fn accept(&self) -> io::Result<(CutStream, SocketAddr)> {
        let stream = self.incoming.lock().await.recv().await.ok_or(io::ErrorKind::NotConnected)?;
        Ok((stream, self.address))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for CutListener {
    fn drop(&mut self) {
        self.net.0.lock().unwrap().listeners.remove(&self.address);
    }
}

/// One end of a connection.
pub(crate) struct CutStream {
    cable: Arc<Mutex<Cable>>,
    /// The direction in which it writes.
    way: Way,
    address: SocketAddr,
}

impl Stream for CutStream {
    type Reader = CutReader;
    type Writer = CutWriter;

    fn split(self) -> (CutReader, CutWriter) {
        let reads = match self.way {
            Way::Forth => Way::Back,
            Way::Back => Way::Forth,
        };
        let reader = CutReader { cable: Arc::clone(&self.cable), way: reads };
        (reader, CutWriter { cable: self.cable, way: self.way })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Both directions of a connection, and when it breaks.
#[derive(Default)]
struct Cable {
    lanes: [Lane; 2],
    cut: Option<Cut>,
    broken: Option<Loss>,
}

/// One direction.
#[derive(Default)]
struct Lane {
    bytes: BytesMut,
    written: u64,
    read: u64,
    reader_left: bool,
    writer_left: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl Cable {
    /// How many more bytes may move on `way` before the cut, if it is one that counts them so.
    fn left(&self, way: Way, loss: Loss) -> usize {
        match self.cut {
            Some(cut) if cut.way == way && cut.loss == loss => {
                let lane = &self.lanes[way as usize];
                let moved = if loss == Loss::Everything { lane.read } else { lane.written };
                (cut.after_bytes - moved) as usize
            }
            _ => usize::MAX,
        }
    }

    fn break_if_due(&mut self, way: Way, loss: Loss) {
        if self.left(way, loss) == 0 {
            self.broken = Some(loss);
            self.lanes.iter_mut().for_each(Lane::wake);
        }
    }

    fn read(&mut self, way: Way, context: &Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.broken != Some(Loss::Everything) && !self.lanes[way as usize].bytes.is_empty() {
            // A cut at 0 is due before the first byte.
            self.break_if_due(way, Loss::Everything);
        }
        if self.broken == Some(Loss::Everything) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let left = self.left(way, Loss::Everything);
        let broken = self.broken.is_some();
        let lane = &mut self.lanes[way as usize];
        let bytes = lane.bytes.len().min(target.remaining()).min(left);
        if bytes == 0 {
            if broken || lane.writer_left {
                return Poll::Ready(Ok(()));
            }
            lane.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        target.put_slice(&lane.bytes[..bytes]);
        lane.bytes.advance(bytes);
        lane.read += bytes as u64;
        lane.wake();
        self.break_if_due(way, Loss::Everything);
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, way: Way, context: &Context<'_>, source: &[u8]) -> Poll<io::Result<usize>> {
        self.break_if_due(way, Loss::Nothing);
        if self.broken.is_some() || self.lanes[way as usize].reader_left {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let left = self.left(way, Loss::Nothing);
        let lane = &mut self.lanes[way as usize];
        let bytes = (CAPACITY - lane.bytes.len()).min(source.len()).min(left);
        if bytes == 0 {
            lane.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        lane.bytes.extend_from_slice(&source[..bytes]);
        lane.written += bytes as u64;
        lane.wake();
        self.break_if_due(way, Loss::Nothing);
        Poll::Ready(Ok(bytes))
    }
}

pub(crate) struct CutReader {
    cable: Arc<Mutex<Cable>>,
    way: Way,
}

impl AsyncRead for CutReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.cable.lock().unwrap().read(self.way, context, buffer)
    }
}

impl Drop for CutReader {
    fn drop(&mut self) {
        let lane = &mut self.cable.lock().unwrap().lanes[self.way as usize];
        lane.reader_left = true;
        lane.wake();
    }
}

pub(crate) struct CutWriter {
    cable: Arc<Mutex<Cable>>,
    way: Way,
}

impl CutWriter {
    fn leave(&self) {
        let lane = &mut self.cable.lock().unwrap().lanes[self.way as usize];
        lane.writer_left = true;
        lane.wake();
    }
}

impl AsyncWrite for CutWriter {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.cable.lock().unwrap().write(self.way, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.leave();
        Poll::Ready(Ok(()))
    }
}

impl Drop for CutWriter {
    fn drop(&mut self) {
        self.leave();
    }
}

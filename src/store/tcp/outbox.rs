//! Replies on their way to one client.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};

use bytes::Buf;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::pieces::Pieces;
use super::protocol::Reply;
use super::serving::STALL_WITHIN;
use crate::sync::Mutex;

/// The replies that one client has not taken yet.
///
/// Pushing never waits, because wake-ups come from other clients' requests, and no client may slow
/// another one. The bound is kept at the other end: a client whose outbox is full is not read from
/// until there is [`room`](Self::room), so that it holds at most the limit, one more reply, and the one
/// wake-up that it may have pending.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    limit_bytes: usize,
    /// Something was written. One task waits.
    drained: Notify,
    /// The client is to go. One task waits.
    evicted: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    replies: Vec<Reply>,
    /// Of the queued replies and of those being written.
    bytes: usize,
    closed: bool,
    /// Of the task that writes, when it found nothing to write.
    writer: Option<Waker>,
}

impl Outbox {
    pub(super) fn new(limit_bytes: usize) -> Self {
        let [drained, evicted] = [const { Notify::const_new() }; 2];
        Self { queue: Mutex::new(Queue::default()), limit_bytes, drained, evicted }
    }

    /// Adds a reply; forgets it if the outbox is closed.
    pub(super) fn push(&self, reply: Reply) {
        self.push_from_within(reply);
        self.wake_writer();
    }

    /// As [`push`](Self::push), by the very task that writes, which must poll
    /// [`write_to`](Self::write_to) before it sleeps: waking itself would cost it as much as a request.
    pub(super) fn push_from_within(&self, reply: Reply) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.bytes += held_bytes(&reply);
            queue.replies.push(reply);
        }
    }

    /// What is in it is still written, and then [`write_to`](Self::write_to) ends.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.wake_writer();
    }

    fn wake_writer(&self) {
        let writer = self.queue.lock().writer.take();
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Says that the client has to go.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Waits until the client has to go. Cancel safe; for one task.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Waits until less than the limit is held. Cancel safe; for one task.
    pub(super) async fn room(&self) {
        while self.queue.lock().bytes >= self.limit_bytes {
            self.drained.notified().await;
        }
    }

    /// Writes what is pushed until the outbox is closed and empty, and counts the bytes in `written`.
    /// Not cancel safe: a reply may be written in part. For one task.
    pub(super) async fn write_to(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        written: &AtomicU64,
    ) -> io::Result<()> {
        let mut pieces = Pieces::default();
        while let Some(replies) = self.take().await {
            let held = replies.iter().map(held_bytes).sum::<usize>();
            replies.iter().for_each(|reply| reply.encode_to(&mut pieces));
            drop(replies);
            let bytes = pieces.remaining() as u64;
            while pieces.has_remaining() {
                match timeout(STALL_WITHIN, writer.write_buf(&mut pieces)).await {
                    Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => written.map(drop)?,
                    Err(_elapsed) => {
                        let why = format!("no byte was taken for {} s", STALL_WITHIN.as_secs());
                        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                    }
                }
            }
            writer.flush().await?;
            written.fetch_add(bytes, Ordering::Relaxed);
            pieces.recycle();
            self.queue.lock().bytes -= held;
            self.drained.notify_one();
        }
        Ok(())
    }

    async fn take(&self) -> Option<Vec<Reply>> {
        poll_fn(|context| {
            let mut queue = self.queue.lock();
            if !queue.replies.is_empty() {
                return Poll::Ready(Some(std::mem::take(&mut queue.replies)));
            }
            if queue.closed {
                return Poll::Ready(None);
            }
            queue.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// What a reply costs in memory: many small ones are not free.
fn held_bytes(reply: &Reply) -> usize {
    size_of::<Reply>() + reply.encoded_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn room_returns_once_the_client_has_read() {
        let outbox = Outbox::new(held_bytes(&Reply::Pong(0)));
        outbox.room().await;
        outbox.push(Reply::Pong(7));
        let (mut near, mut far) = tokio::io::duplex(1);
        let out = AtomicU64::new(0);
        let soon = std::time::Duration::from_secs(1);
        let writing = outbox.write_to(&mut near, &out);
        tokio::pin!(writing);
        let full = tokio::select! { biased; _ = &mut writing => false, () = outbox.room() => false,
        () = tokio::time::sleep(soon) => true };
        assert!(full, "the client has read nothing");
        let mut read = [0; 4];
        let reading = tokio::io::AsyncReadExt::read_exact(&mut far, &mut read);
        tokio::select! { biased; _ = &mut writing => panic!("not closed"), result = reading => result.unwrap() };
        tokio::select! { biased; _ = &mut writing => panic!("not closed"), () = outbox.room() => {} };
        assert_eq!(u32::from_le_bytes(read), 7);
    }

    #[tokio::test]
    async fn what_was_pushed_before_the_close_is_written_in_order_and_nothing_after() {
        let outbox = Outbox::new(1 << 20);
        let large = vec![b'x'; 10_000];
        for reply in [Reply::Ready, Reply::Value(large.clone().into()), Reply::Value("s".into())] {
            outbox.push(reply);
        }
        outbox.close();
        outbox.push(Reply::NotReady);
        let (mut written, out) = (Vec::new(), AtomicU64::new(0));
        outbox.write_to(&mut written, &out).await.unwrap();
        let mut expected = vec![0];
        expected.extend_from_slice(&(large.len() as u64).to_le_bytes());
        expected.extend_from_slice(&large);
        expected.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, b's']);
        assert_eq!(written, expected);
        assert_eq!(out.into_inner(), expected.len() as u64);
    }
}

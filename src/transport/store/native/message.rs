//! What a message is made of, without I/O.
//!
//! A message to the receiver is a piece of one stream of [frames](Frame) and payloads; only payloads
//! go on from one message to the next. A message to the sender says how many messages were consumed
//! (u64 LE), and then has at most two replies.

use bytes::{Buf, Bytes};

use crate::transport::session::Violation;
use crate::wire::DecodeError;
use crate::wire::frame::{Frame, Reply, frame_in};

/// The receiver's end of the stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    message: Bytes,
}

impl Stream {
    /// Whether a message is wanted before anything can be taken.
    pub(super) fn is_empty(&self) -> bool {
        self.message.is_empty()
    }

    /// Goes on with the next message, once this one is empty.
    pub(super) fn go_on(&mut self, message: Bytes) -> Result<(), Violation> {
        debug_assert!(self.is_empty());
        if message.is_empty() {
            return Err(Violation("sent an empty message".into()));
        }
        self.message = message;
        Ok(())
    }

    /// Takes the next frame; there must be one.
    pub(super) fn frame(&mut self) -> Result<Frame, Violation> {
        let body = frame_in(&self.message).map_err(violation)?;
        let body = body.ok_or_else(|| Violation("sent a message that ends inside a frame".into()))?;
        let end = body.end;
        let frame = Frame::decode(&self.message[body]).map_err(violation)?;
        self.message.advance(end);
        Ok(frame)
    }

    /// Takes what is here of a payload, and says how much that was.
    pub(super) fn payload(&mut self, out: &mut [u8]) -> usize {
        let part = self.message.len().min(out.len());
        self.message.copy_to_slice(&mut out[..part]);
        part
    }
}

/// An acknowledgement and a last word.
const REPLIES_IN_REPORT_MAX: usize = 2;

/// A message to the sender.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// How many messages of the sender were consumed.
    pub(super) consumed: u64,
    /// In the order in which they were said, at most two.
    pub(super) replies: Vec<Reply>,
}

impl Report {
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = self.consumed.to_le_bytes().to_vec();
        for reply in &self.replies {
            reply.encode_into(&mut bytes);
        }
        bytes.into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Violation> {
        let short = || Violation("sent a report that is cut off".into());
        let (consumed, mut rest) = bytes.split_first_chunk().ok_or_else(short)?;
        let mut replies = Vec::new();
        while !rest.is_empty() {
            if replies.len() == REPLIES_IN_REPORT_MAX {
                return Err(Violation(format!("sent a report of more than {REPLIES_IN_REPORT_MAX} replies")));
            }
            let body = frame_in(rest).map_err(violation)?.ok_or_else(short)?;
            let end = body.end;
            replies.push(Reply::decode(&rest[body]).map_err(violation)?);
            rest = &rest[end..];
        }
        Ok(Self { consumed: u64::from_le_bytes(*consumed), replies })
    }
}

fn violation(error: DecodeError) -> Violation {
    Violation(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_go_on_in_the_next_message_and_frames_do_not() {
        let mut stream = Stream::default();
        let mut message = Vec::new();
        Frame::Close { items: 7 }.encode_into(&mut message);
        let frame = message.clone();
        message.extend_from_slice(b"pay");
        stream.go_on(message.into()).unwrap();
        assert_eq!(stream.frame(), Ok(Frame::Close { items: 7 }));
        let mut payload = [0; 7];
        assert_eq!(stream.payload(&mut payload), 3);
        assert!(stream.is_empty());
        stream.go_on(Bytes::from([b"load", &frame[..frame.len() - 1]].concat())).unwrap();
        assert_eq!(stream.payload(&mut payload[3..]), 4);
        assert_eq!(&payload, b"payload");
        assert_eq!(stream.frame(), Err(Violation("sent a message that ends inside a frame".into())));
        assert!(Stream::default().go_on(Bytes::new()).is_err(), "a loop of them would never end");
    }

    #[test]
    fn a_report_survives_and_a_part_of_it_is_none() {
        let replies = vec![Reply::Acknowledge { upto: 3 }, Reply::Finished { taken: 3 }];
        let report = Report { consumed: 9, replies };
        let bytes = report.encode();
        assert_eq!(Report::decode(&bytes), Ok(Report { consumed: 9, ..report }));
        for length in (0..8).chain(9..bytes.len()) {
            let whole = Report::decode(&bytes[..length]).is_ok_and(|report| report.replies.len() == 2);
            assert!(!whole, "{length}");
        }
        assert!(Report::decode(&bytes[..bytes.len() - 1]).is_err());
    }
}

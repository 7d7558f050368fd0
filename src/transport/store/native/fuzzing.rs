//! The decoders of what is in the store, for the fuzz targets.

use bytes::Bytes;

use super::message::{Report, Stream};
use super::{meeting, pulse};
use crate::wire::frame::Frame;
use crate::wire::metadata::Metadata;

/// A report that decodes, encoded again.
pub fn report(bytes: &[u8]) -> Option<Bytes> {
    Report::decode(bytes).ok().map(|report| report.encode())
}

/// A Hello in the store that decodes, encoded again.
pub fn hello(bytes: &[u8]) -> Option<Bytes> {
    meeting::decode(bytes).ok().map(|hello| meeting::encode(&hello.endpoint, hello.peer_session))
}

/// The words of a farewell.
pub fn farewell(beat: &[u8]) -> Option<String> {
    pulse::farewell(beat).map(|words| words.as_str().to_owned())
}

/// What a receiver takes out of messages, until it finds a fault or there is nothing more: frames,
/// encoded again, and at most `payload_bytes` of payload for each item.
pub fn read_messages(messages: impl IntoIterator<Item = Bytes>, payload_bytes: usize) -> Vec<u8> {
    let (mut stream, mut taken) = (Stream::default(), Vec::new());
    let mut messages = messages.into_iter();
    // What is still missing of an item's payload.
    let mut missing = 0;
    loop {
        while stream.is_empty() {
            let Some(message) = messages.next() else { return taken };
            if stream.go_on(message).is_err() {
                return taken;
            }
        }
        if missing > 0 {
            let mut part = vec![0; missing];
            let length = stream.payload(&mut part);
            taken.extend_from_slice(&part[..length]);
            missing -= length;
            continue;
        }
        let Ok(frame) = stream.frame() else { return taken };
        frame.encode_into(&mut taken);
        if let Frame::Item { metadata: Metadata::Tensor(tensor), .. } = frame {
            missing = tensor.payload_bytes();
            if missing > payload_bytes {
                return taken;
            }
        }
    }
}

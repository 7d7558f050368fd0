//! What the fuzz targets need of the inside of transports. Only there where they are built, which sets
//! `--cfg fuzzing`.

use super::session::Claim;
use super::session::hostile::{LoneReceiver, LoneSender, ReceiverStep, SenderStep};
use super::session::model::{Edge, Step};
pub use super::store::fuzzing::{farewell, hello, read_messages, report};
use crate::wire::frame::{Frame, Reply};
use crate::wire::handshake::SessionId;
use crate::wire::metadata::Metadata;

/// Takes both ends of an edge through steps: of each byte the lower half says which, the upper half is
/// a number for it.
///
/// # Panics
/// If a promise does not hold.
pub fn session(steps: &[u8]) {
    let mut edge = Edge::new();
    for byte in steps {
        let number = usize::from(byte >> 4);
        edge.step(&match byte & 0xF {
            0 | 1 => Step::Accept,
            2 => Step::Close,
            3 | 4 => Step::Send,
            5 => Step::ReadFrame,
            6 => Step::Acknowledge,
            7 => Step::Leave(number),
            8 => Step::ReadReply,
            9 => Step::BreakAtSender,
            10 => Step::BreakAtReceiver,
            11 => Step::Dial,
            12 | 13 => Step::LetIn(number),
            14 => Step::ReadVerdict,
            _ => Step::Foreign,
        });
    }
    edge.finish();
}

/// Tells a sender and a receiver, each by itself, whatever the bytes say: two to a step, of which the
/// second is a number.
///
/// # Panics
/// If one of them believes what can't be.
pub fn session_hostile(steps: &[u8]) {
    let (mut sender, mut receiver) = (LoneSender::default(), LoneReceiver::default());
    let (steps, _) = steps.as_chunks();
    for &[kind, number] in steps {
        // The highest ones overflow what is not careful.
        let large = if number < 0xF0 { number.into() } else { u64::MAX - u64::from(number & 0xF) };
        let upper = kind >> 4;
        match kind & 0xF {
            0 => sender.step(SenderStep::Send),
            1 => sender.step(SenderStep::Close),
            2 => sender.step(SenderStep::Meet(name(upper), large)),
            3 => sender.step(SenderStep::Hear(Reply::Acknowledge { upto: large })),
            4 => sender.step(SenderStep::Hear(Reply::Finished { taken: large })),
            5 => sender.step(SenderStep::Hear(Reply::Closed { taken: large })),
            6 => sender.step(SenderStep::Hear(Reply::Abort { reason: "reason".into() })),
            7 => sender.step(SenderStep::Hear(Reply::Alive)),
            8 => {
                let peer_session = (number & 1 == 1).then(|| name(number >> 4));
                let claim = Claim { session: name(upper), peer_session };
                receiver.step(ReceiverStep::Knock(claim, number & 2 == 2));
            }
            9 => receiver.step(ReceiverStep::Acknowledge),
            10 => receiver.step(ReceiverStep::Finish),
            11 => receiver.step(ReceiverStep::Hear(Frame::Close { items: large })),
            12 => receiver.step(ReceiverStep::Hear(Frame::Goodbye)),
            13 => receiver.step(ReceiverStep::Hear(Frame::Abort { reason: "reason".into() })),
            14 => receiver.step(ReceiverStep::Hear(Frame::Alive)),
            _ => {
                let metadata = Metadata::None;
                receiver.step(ReceiverStep::Hear(Frame::Item { sequence: large, metadata }));
            }
        }
    }
}

/// Few, so that they meet.
fn name(number: u8) -> SessionId {
    [number % 4; 16]
}

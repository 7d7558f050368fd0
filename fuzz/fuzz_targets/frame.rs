//! Bodies of frames of both directions, and frames in a stream.

#![no_main]

use kvpipe::wire::collective::{GroupFrame, GroupReply};
use kvpipe::wire::frame::{Frame, PREFIX_BYTES, Reply, frame_in};
use kvpipe::wire::nccl::{NcclFrame, NcclReply};
use kvpipe_fuzz::{check, within_limit};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes, Frame::decode, Frame::encode_into, PREFIX_BYTES);
    check(bytes, Reply::decode, Reply::encode_into, PREFIX_BYTES);
    check(bytes, NcclFrame::decode, NcclFrame::encode_into, PREFIX_BYTES);
    check(bytes, NcclReply::decode, NcclReply::encode_into, PREFIX_BYTES);
    check(bytes, GroupFrame::decode, GroupFrame::encode_into, PREFIX_BYTES);
    check(bytes, GroupReply::decode, GroupReply::encode_into, PREFIX_BYTES);
    assert!(Frame::decode(bytes).is_err() || Reply::decode(bytes).is_err(), "decodes in both directions");

    let mut stream = bytes;
    while let Ok(Some(body)) = within_limit(|| frame_in(stream)) {
        check(&stream[body.clone()], Frame::decode, Frame::encode_into, PREFIX_BYTES);
        stream = &stream[body.end..];
    }
});

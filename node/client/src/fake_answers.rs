//! What nodes for tests send back, as their mood has it.

use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{FrameHeader, Opcode, encode_control};
use ashlar_layout::ids::Epoch;
use ashlar_layout::limits::FRAME_PAYLOAD_MAX;
use ashlar_layout::message::Reply;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::fake::Mood;

/// Sends the reply as the mood has it; false ends the connection.
pub(crate) async fn respond(
    stream: &mut TcpStream,
    request: u64,
    reply: Reply,
    payload: Bytes,
    mood: Mood,
) -> bool {
    let reply = if mood == Mood::WrongKind {
        Reply::Done
    } else {
        reply
    };
    let mut control = encode_control(&reply);
    if mood == Mood::ControlGarbage {
        control = vec![0xee; 20];
    }
    let opcode = if mood == Mood::NoReply {
        Opcode::Request
    } else {
        Opcode::Reply
    };
    let request = if mood == Mood::OtherRequest {
        request + 1_000_000
    } else {
        request
    };
    let crc = crc32(&payload);
    let mut header =
        FrameHeader::new(opcode, request, Epoch(1), &control, payload.len(), crc).unwrap();
    match mood {
        Mood::Oversized => header.payload_len = FRAME_PAYLOAD_MAX + 1,
        Mood::ControlCrc => header.control_crc ^= 1,
        Mood::PayloadCrc => header.payload_crc ^= 1,
        _ => {}
    }
    let mut frame = [&header.encode()[..], &control, &payload].concat();
    match mood {
        Mood::Mute => return true,
        Mood::Closes => return false,
        Mood::Slow(time) => tokio::time::sleep(time).await,
        Mood::Garbage => frame = vec![b'x'; 500],
        Mood::HeaderCrc => frame[20] ^= 1,
        Mood::Truncated => {
            let half = frame.len() / 2;
            stream.write_all(&frame[..half]).await.ok();
            return false;
        }
        _ => {}
    }
    stream.write_all(&frame).await.is_ok()
}

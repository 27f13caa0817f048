//! Makes frames that go out.

use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameHeader, Opcode, encode_control};
use ashlar_layout::ids::Epoch;
use ashlar_layout::message::{ChainMessage, ErrorCode, Reply, Request, WireError};
use ashlar_node_reactor::{Chunk, ConnId, Driver};
use bytes::{BufMut, Bytes, BytesMut};

use crate::words::say;

/// The bytes behind a frame's control part.
pub enum Payload {
    /// None.
    None,
    /// These, whose CRC is computed here.
    Bytes(Bytes),
    /// This chunk, whose length and CRC are known.
    Chunk {
        /// The bytes.
        chunk: Chunk,
        /// How many they are.
        len: u32,
        /// Their CRC-32.
        crc: u32,
    },
}

/// Sends a reply to request `request`.
pub fn reply(
    io: &mut impl Driver,
    conn: ConnId,
    epoch: Epoch,
    request: u64,
    reply: &Reply,
    payload: Payload,
) {
    frame(
        io,
        conn,
        Opcode::Reply,
        epoch,
        request,
        encode_control(reply),
        payload,
    );
}

/// Sends a request; nothing but `Hello` is asked by a node today.
pub fn request(io: &mut impl Driver, conn: ConnId, epoch: Epoch, number: u64, request: &Request) {
    frame(
        io,
        conn,
        Opcode::Request,
        epoch,
        number,
        encode_control(request),
        Payload::None,
    );
}

/// Sends a chain message, with entries as its payload.
pub fn chain(
    io: &mut impl Driver,
    conn: ConnId,
    epoch: Epoch,
    message: &ChainMessage,
    entries: Bytes,
) {
    let payload = if entries.is_empty() {
        Payload::None
    } else {
        Payload::Bytes(entries)
    };
    frame(
        io,
        conn,
        Opcode::Chain,
        epoch,
        0,
        encode_control(message),
        payload,
    );
}

/// The reply for a refusal or failure.
pub fn error(code: ErrorCode, detail: impl Into<String>) -> Reply {
    Reply::Error(WireError {
        code,
        detail: detail.into(),
    })
}

fn frame(
    io: &mut impl Driver,
    conn: ConnId,
    opcode: Opcode,
    epoch: Epoch,
    request: u64,
    control: Vec<u8>,
    payload: Payload,
) {
    let (payload_len, payload_crc) = match &payload {
        Payload::None => (0, 0),
        Payload::Bytes(bytes) => (bytes.len() as u32, crc32(bytes)),
        Payload::Chunk { len, crc, .. } => (*len, *crc),
    };
    let made = FrameHeader::new(
        opcode,
        request,
        epoch,
        &control,
        payload_len as usize,
        payload_crc,
    );
    let header = match made {
        Ok(header) => header,
        Err(e) => {
            // Nothing that we send is near these bounds; the connection says so if one ever is.
            say!("a frame could not be sent: {e}");
            io.abort(conn);
            return;
        }
    };
    let mut head = BytesMut::with_capacity(FRAME_HEADER_LEN + control.len());
    head.put_slice(&header.encode());
    head.put_slice(&control);
    io.send(conn, Chunk::Bytes(head.freeze()));
    match payload {
        Payload::None => {}
        Payload::Bytes(bytes) => io.send(conn, Chunk::Bytes(bytes)),
        Payload::Chunk { chunk, .. } => io.send(conn, chunk),
    }
}

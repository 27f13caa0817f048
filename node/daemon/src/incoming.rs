//! Cuts a connection's bytes into frames.
//!
//! Invariants:
//! - no length is used before the header's CRC has matched, and none is larger than the limits;
//! - a control part is handed out only after its CRC has matched, a `Bytes` payload likewise;
//! - a payload that goes to a [`Buf`] is *not* checked here: the engine does so while it computes the
//!   record's piece checksums, so that the bytes are read once;
//! - at most one frame is held at a time.

use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameError, FrameHeader};
use ashlar_node_reactor::Buf;
use bytes::Bytes;

/// Where the payload of the frame at hand goes.
pub enum Sink {
    /// To memory of its own, checked against the header's CRC.
    Bytes,
    /// To a buffer, from this byte of it on.
    Buf(Buf, usize),
    /// Nowhere: it is counted off and dropped.
    Discard,
}

/// What came of feeding bytes in.
pub enum Progress {
    /// All bytes were taken; more are needed.
    More,
    /// A header and its control part. If the header announces a payload, [`Incoming::expect`] must be called next.
    Head(FrameHeader, Vec<u8>),
    /// The payload that a [`Sink::Bytes`] was for.
    Payload(Bytes),
    /// The payload that a [`Sink::Buf`] was for.
    Filled(Buf),
    /// The payload that a [`Sink::Discard`] was for has gone by.
    Discarded,
}

enum State {
    Header,
    Control(FrameHeader),
    /// A head was handed out, and `expect` has not been called.
    Asking(FrameHeader),
    Bytes(FrameHeader),
    Buf {
        buf: Buf,
        at: usize,
        end: usize,
    },
    Discard {
        left: usize,
    },
}

/// The frames of one connection, as they come in.
pub struct Incoming {
    state: State,
    held: Vec<u8>,
}

impl Default for Incoming {
    fn default() -> Self {
        Incoming {
            state: State::Header,
            held: Vec::with_capacity(FRAME_HEADER_LEN),
        }
    }
}

impl Incoming {
    /// Says where the payload of the head just handed out goes. Without a payload it does nothing.
    pub fn expect(&mut self, sink: Sink) {
        let State::Asking(header) = &self.state else {
            return;
        };
        let len = header.payload_len as usize;
        self.state = match sink {
            Sink::Bytes => {
                self.held = Vec::with_capacity(len);
                State::Bytes(*header)
            }
            Sink::Buf(buf, at) => {
                debug_assert!(at + len <= buf.len());
                State::Buf {
                    buf,
                    at,
                    end: at + len,
                }
            }
            Sink::Discard => State::Discard { left: len },
        };
    }

    /// Takes from `data` what belongs to the next thing to report.
    pub fn feed(&mut self, data: &mut &[u8]) -> Result<Progress, FrameError> {
        loop {
            match std::mem::replace(&mut self.state, State::Header) {
                State::Header => {
                    if !self.collect(data, FRAME_HEADER_LEN) {
                        return Ok(Progress::More);
                    }
                    let mut raw = [0u8; FRAME_HEADER_LEN];
                    raw.copy_from_slice(&self.held);
                    self.held.clear();
                    let header = FrameHeader::decode(&raw)?;
                    self.held.reserve(header.control_len as usize);
                    self.state = State::Control(header);
                }
                State::Control(header) => {
                    let full = self.collect(data, header.control_len as usize);
                    if !full {
                        self.state = State::Control(header);
                        return Ok(Progress::More);
                    }
                    let control = std::mem::take(&mut self.held);
                    header.verify_control(&control)?;
                    if header.payload_len > 0 {
                        self.state = State::Asking(header);
                    }
                    return Ok(Progress::Head(header, control));
                }
                State::Asking(header) => {
                    // Whoever handles heads forgot the payload: it must not be taken for a header.
                    self.state = State::Discard {
                        left: header.payload_len as usize,
                    };
                }
                State::Bytes(header) => {
                    if !self.collect(data, header.payload_len as usize) {
                        self.state = State::Bytes(header);
                        return Ok(Progress::More);
                    }
                    let payload = std::mem::take(&mut self.held);
                    header.verify_payload(&payload)?;
                    return Ok(Progress::Payload(Bytes::from(payload)));
                }
                State::Buf { mut buf, at, end } => {
                    let take = data.len().min(end - at);
                    buf[at..at + take].copy_from_slice(&data[..take]);
                    *data = &data[take..];
                    if at + take == end {
                        return Ok(Progress::Filled(buf));
                    }
                    self.state = State::Buf {
                        buf,
                        at: at + take,
                        end,
                    };
                    return Ok(Progress::More);
                }
                State::Discard { left } => {
                    let take = data.len().min(left);
                    *data = &data[take..];
                    if take == left {
                        return Ok(Progress::Discarded);
                    }
                    self.state = State::Discard { left: left - take };
                    return Ok(Progress::More);
                }
            }
        }
    }

    /// If a buffer is being filled: the buffer and the range still to come, for the reactor to
    /// receive straight into. The frame is over once that is done.
    pub fn take_direct(&mut self) -> Option<(Buf, usize, usize)> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Buf { buf, at, end } => Some((buf, at, end)),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Takes from `data` until `held` has `len` bytes; whether it has.
    fn collect(&mut self, data: &mut &[u8], len: usize) -> bool {
        let take = data.len().min(len - self.held.len());
        self.held.extend_from_slice(&data[..take]);
        *data = &data[take..];
        self.held.len() == len
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ashlar_layout::crc::crc32;
    use ashlar_layout::frame::Opcode;
    use ashlar_layout::ids::Epoch;

    use super::*;

    fn frame(control: &[u8], payload: &[u8]) -> Vec<u8> {
        let epoch = Epoch(1);
        let header = FrameHeader::new(
            Opcode::Request,
            7,
            epoch,
            control,
            payload.len(),
            crc32(payload),
        );
        let mut bytes = header.unwrap().encode().to_vec();
        bytes.extend_from_slice(control);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Feeds a stream in pieces; what came out, as control parts and payloads.
    fn cut(stream: &[u8], piece: usize, keep: bool) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut incoming = Incoming::default();
        let mut out = Vec::new();
        for piece in stream.chunks(piece) {
            let mut data = piece;
            while !data.is_empty() {
                match incoming.feed(&mut data)? {
                    Progress::More | Progress::Discarded => {}
                    Progress::Head(_, control) => {
                        out.push(control);
                        incoming.expect(if keep { Sink::Bytes } else { Sink::Discard });
                    }
                    Progress::Payload(bytes) => out.push(bytes.to_vec()),
                    Progress::Filled(_) => unreachable!("no buffer was given"),
                }
            }
        }
        Ok(out)
    }

    #[test]
    fn frames_are_the_same_however_the_stream_is_cut() {
        let mut stream = frame(b"one", b"first payload");
        stream.extend(frame(b"two", b""));
        stream.extend(frame(b"three", &[9; 300]));
        let kept = [&b"one"[..], b"first payload", b"two", b"three", &[9; 300]];
        let dropped = [&b"one"[..], b"two", b"three"];
        for piece in 1..=stream.len() {
            assert_eq!(
                cut(&stream, piece, true).unwrap(),
                kept,
                "in pieces of {piece}"
            );
            assert_eq!(
                cut(&stream, piece, false).unwrap(),
                dropped,
                "in pieces of {piece}"
            );
        }
    }

    #[test]
    fn no_damaged_byte_gets_through() {
        let stream = frame(b"control", b"payload");
        for at in 0..stream.len() {
            let mut damaged = stream.clone();
            damaged[at] ^= 0x10;
            assert!(
                cut(&damaged, 16, true).is_err(),
                "byte {at} was changed unnoticed"
            );
        }
    }
}

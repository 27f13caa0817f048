//! Frames from a socket.
//!
//! Invariants:
//! - nothing is allocated for a frame before its header's CRC and bounds were checked;
//! - a payload is handed over only if it matches its CRC;
//! - a frame whose header is good and whose parts are not costs that frame only; anything else ends
//!   the connection;
//! - reading may be dropped at any await: what was read is kept.

use std::io;

use ashlar_cluster_object::{BufferPool, PoolBuf};
use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameError, FrameHeader, Opcode, decode_control};
use ashlar_layout::ids::Epoch;
use ashlar_layout::message::Reply;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Room for headers, control parts and small payloads: one read takes in what is there.
const ROOM: usize = 64 * 1024;

/// A reply as it came.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) request: u64,
    /// The map that the node works with.
    pub(crate) epoch: Epoch,
    /// The reply, its payload and that one's CRC-32; or why it is unusable.
    pub(crate) reply: Result<(Reply, Bytes, u32), FrameError>,
}

/// Why a connection cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the node closed the connection")]
    Closed,
    #[error("the node closed the connection in the middle of a frame")]
    Truncated,
    #[error("a frame came that is no reply")]
    NoReply,
}

#[derive(Debug)]
struct Large {
    header: FrameHeader,
    reply: Result<Reply, FrameError>,
    payload: PoolBuf,
    filled: usize,
}

/// Puts frames together.
#[derive(Debug)]
pub(crate) struct Reader {
    pool: BufferPool,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    large: Option<Large>,
}

impl Reader {
    pub(crate) fn new(pool: BufferPool) -> Reader {
        Reader {
            pool,
            buf: vec![0; ROOM],
            start: 0,
            end: 0,
            large: None,
        }
    }

    /// Reads once, as much as there is.
    pub(crate) async fn fill(
        &mut self,
        socket: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), ReadError> {
        if let Some(large) = &mut self.large {
            // Straight to where it stays.
            let n = socket.read(&mut large.payload[large.filled..]).await?;
            large.filled += n;
            return if n == 0 {
                Err(ReadError::Truncated)
            } else {
                Ok(())
            };
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.buf.len() - self.end < ROOM / 2 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let n = socket.read(&mut self.buf[self.end..]).await?;
        self.end += n;
        match n {
            0 if self.start == self.end => Err(ReadError::Closed),
            0 => Err(ReadError::Truncated),
            _ => Ok(()),
        }
    }

    /// The next whole frame, if it is there.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>, ReadError> {
        if let Some(large) = &self.large {
            if large.filled < large.payload.len() {
                return Ok(None);
            }
            let Some(Large {
                header,
                reply,
                payload,
                ..
            }) = self.large.take()
            else {
                return Ok(None);
            };
            return Ok(Some(whole(&header, reply, payload.freeze())));
        }
        let held = &self.buf[self.start..self.end];
        let Some(bytes) = held.first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(bytes)?;
        if header.opcode != Opcode::Reply {
            return Err(ReadError::NoReply);
        }
        let control_end = FRAME_HEADER_LEN + header.control_len as usize;
        let payload_len = header.payload_len as usize;
        if held.len() < control_end {
            self.make_room(control_end);
            return Ok(None);
        }
        let control = &held[FRAME_HEADER_LEN..control_end];
        let reply = header
            .verify_control(control)
            .and_then(|()| decode_control::<Reply>(control));
        let here = &held[control_end..];
        if payload_len <= here.len() {
            let payload = Bytes::copy_from_slice(&here[..payload_len]);
            self.start += control_end + payload_len;
            return Ok(Some(whole(&header, reply, payload)));
        }
        let mut payload = self.pool.take(payload_len);
        let filled = here.len();
        payload[..filled].copy_from_slice(here);
        self.start = self.end;
        self.large = Some(Large {
            header,
            reply,
            payload,
            filled,
        });
        Ok(None)
    }

    /// Sees to it that a header and control part of `len` bytes, which are bounded, fit.
    fn make_room(&mut self, len: usize) {
        self.buf.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buf.len() < len {
            self.buf.resize(len, 0);
        }
    }
}

fn whole(header: &FrameHeader, reply: Result<Reply, FrameError>, payload: Bytes) -> Incoming {
    let request = header.request;
    let reply = reply.and_then(|reply| {
        let got = crc32(&payload);
        if got == header.payload_crc {
            Ok((reply, payload, got))
        } else {
            Err(FrameError::BadCrc {
                part: "payload",
                expected: header.payload_crc,
                got,
            })
        }
    });
    Incoming {
        request,
        epoch: header.epoch,
        reply,
    }
}

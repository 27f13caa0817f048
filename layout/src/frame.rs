//! Wire frames: a fixed header, a control part, a payload.
//!
//! Invariants:
//! - nothing of a header is used before its CRC has matched, and its lengths are within the limits:
//!   a frame is bounded before anything is allocated for it;
//! - control part and payload have a CRC each; a whole shard's is the one in its manifest;
//! - a reply repeats its request's number.
//!
//! The bytes are described in FORMAT.md, "Frame".

use std::mem::{offset_of, size_of};

use wincode::{SchemaRead, SchemaWrite};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::control::{self, ControlError, ReadConfig, WriteConfig};
use crate::crc::{crc32, crc32_around};
use crate::ids::Epoch;
use crate::limits::{FRAME_CONTROL_MAX, FRAME_PAYLOAD_MAX};
use crate::version::WIRE_VERSION;

/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 64;

const MAGIC: [u8; 4] = *b"ASHF";
const CRC_AT: usize = offset_of!(RawFrame, crc);

/// What a frame's control part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Opcode {
    /// A [`crate::message::Request`].
    Request = 1,
    /// A [`crate::message::Reply`].
    Reply = 2,
    /// A [`crate::message::ChainMessage`].
    Chain = 3,
    /// The control plane's: no control part, the payload is JSON. Only its own ports take it.
    Control = 4,
}

impl Opcode {
    fn from_number(number: u16) -> Option<Opcode> {
        Some(match number {
            1 => Opcode::Request,
            2 => Opcode::Reply,
            3 => Opcode::Chain,
            4 => Opcode::Control,
            _ => return None,
        })
    }
}

/// In a request's flags: it is of an audit or a repair, and may be held back while others use the device.
const BACKGROUND: u32 = 1;
/// In a request's flags: it is of a repair that does not wait.
const URGENT: u32 = 2;

/// Whether a request may wait for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Haste {
    /// Somebody waits for it. It is what others are measured by.
    #[default]
    Foreground,
    /// It is of an audit or a repair, and may be held back for a moment.
    Background,
    /// It is of a repair of what can lose hardly anything more: it is never held back.
    Urgent,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the control part is.
    pub opcode: Opcode,
    /// Of a request: [`FrameHeader::haste`]; a receiver ignores what it does not know.
    pub flags: u32,
    /// The request's number, unique among those under way on a connection.
    pub request: u64,
    /// The sender's map epoch.
    pub epoch: Epoch,
    /// Bytes of the control part.
    pub control_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// CRC-32 of the control part.
    pub control_crc: u32,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFrame {
    magic: [u8; 4],
    crc: U32,
    version: U16,
    opcode: U16,
    flags: U32,
    request: U64,
    epoch: U64,
    control_len: U32,
    payload_len: U32,
    control_crc: U32,
    payload_crc: U32,
    reserved: [u8; 16],
}

const _: () = assert!(size_of::<RawFrame>() == FRAME_HEADER_LEN);
const _: () = assert!(offset_of!(RawFrame, crc) == 4);
const _: () = assert!(offset_of!(RawFrame, version) == 8);
const _: () = assert!(offset_of!(RawFrame, opcode) == 10);
const _: () = assert!(offset_of!(RawFrame, flags) == 12);
const _: () = assert!(offset_of!(RawFrame, request) == 16);
const _: () = assert!(offset_of!(RawFrame, epoch) == 24);
const _: () = assert!(offset_of!(RawFrame, control_len) == 32);
const _: () = assert!(offset_of!(RawFrame, payload_len) == 36);
const _: () = assert!(offset_of!(RawFrame, control_crc) == 40);
const _: () = assert!(offset_of!(RawFrame, payload_crc) == 44);
const _: () = assert!(offset_of!(RawFrame, reserved) == 48);

/// What is wrong with a frame. The connection cannot go on after any but [`FrameError::Control`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Whoever this is does not speak our protocol.
    #[error("not a frame: it begins with {got:02x?}, not {MAGIC:02x?}")]
    NotAFrame {
        /// How it begins.
        got: [u8; 4],
    },
    /// The header was damaged.
    #[error("frame header: CRC is {got:#010x}, the bytes give {expected:#010x}")]
    BadHeaderCrc {
        /// What the bytes give.
        expected: u32,
        /// What the header says.
        got: u32,
    },
    /// Another version of the protocol.
    #[error("frame of version {got}; this program speaks version {expected}")]
    OtherVersion {
        /// Ours.
        expected: u16,
        /// The frame's.
        got: u16,
    },
    /// An opcode that is not known.
    #[error("frame with unknown opcode {got}")]
    UnknownOpcode {
        /// The opcode.
        got: u16,
    },
    /// A part is longer than is allowed.
    #[error("frame with a {part} of {got} bytes; at most {expected} are allowed")]
    TooLong {
        /// Control part or payload.
        part: &'static str,
        /// Bytes allowed.
        expected: u32,
        /// Bytes that the header says, or that were to be sent.
        got: u64,
    },
    /// A part does not have the length that the header says.
    #[error("frame with a {part} of {got} bytes; its header says {expected}")]
    BadLength {
        /// Control part or payload.
        part: &'static str,
        /// Bytes that the header says.
        expected: u32,
        /// Bytes there are.
        got: u64,
    },
    /// A part was damaged.
    #[error("frame with a damaged {part}: CRC should be {expected:#010x}, is {got:#010x}")]
    BadCrc {
        /// Control part or payload.
        part: &'static str,
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        got: u32,
    },
    /// The control part arrived whole, but cannot be understood.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl FrameHeader {
    /// The header for these parts; refuses parts that are too long. `payload_crc` is the CRC-32 of
    /// the payload, which most senders know already.
    pub fn new(
        opcode: Opcode,
        request: u64,
        epoch: Epoch,
        control: &[u8],
        payload_len: usize,
        payload_crc: u32,
    ) -> Result<FrameHeader, FrameError> {
        Ok(FrameHeader {
            opcode,
            flags: 0,
            request,
            epoch,
            control_len: bounded("control part", control.len() as u64, FRAME_CONTROL_MAX)?,
            payload_len: bounded("payload", payload_len as u64, FRAME_PAYLOAD_MAX)?,
            control_crc: crc32(control),
            payload_crc,
        })
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut raw = RawFrame {
            magic: MAGIC,
            crc: U32::ZERO,
            version: WIRE_VERSION.into(),
            opcode: (self.opcode as u16).into(),
            flags: self.flags.into(),
            request: self.request.into(),
            epoch: self.epoch.0.into(),
            control_len: self.control_len.into(),
            payload_len: self.payload_len.into(),
            control_crc: self.control_crc.into(),
            payload_crc: self.payload_crc.into(),
            reserved: [0; 16],
        };
        raw.crc = crc32_around(raw.as_bytes(), CRC_AT).into();
        zerocopy::transmute!(raw)
    }

    /// Reads a header, and checks all that can be checked without the parts.
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Result<FrameHeader, FrameError> {
        let raw: &RawFrame = zerocopy::transmute_ref!(bytes);
        if raw.magic != MAGIC {
            return Err(FrameError::NotAFrame { got: raw.magic });
        }
        let expected = crc32_around(bytes, CRC_AT);
        if raw.crc.get() != expected {
            return Err(FrameError::BadHeaderCrc {
                expected,
                got: raw.crc.get(),
            });
        }
        if raw.version.get() != WIRE_VERSION {
            let got = raw.version.get();
            return Err(FrameError::OtherVersion {
                expected: WIRE_VERSION,
                got,
            });
        }
        let got = raw.opcode.get();
        let opcode = Opcode::from_number(got).ok_or(FrameError::UnknownOpcode { got })?;
        let (control_len, payload_len) = (raw.control_len.get(), raw.payload_len.get());
        Ok(FrameHeader {
            opcode,
            flags: raw.flags.get(),
            request: raw.request.get(),
            epoch: Epoch(raw.epoch.get()),
            control_len: bounded("control part", u64::from(control_len), FRAME_CONTROL_MAX)?,
            payload_len: bounded("payload", u64::from(payload_len), FRAME_PAYLOAD_MAX)?,
            control_crc: raw.control_crc.get(),
            payload_crc: raw.payload_crc.get(),
        })
    }

    /// The same with flags that say whether it may wait.
    pub fn hasting(mut self, haste: Haste) -> FrameHeader {
        self.flags &= !(BACKGROUND | URGENT);
        self.flags |= match haste {
            Haste::Foreground => 0,
            Haste::Background => BACKGROUND,
            Haste::Urgent => URGENT,
        };
        self
    }

    /// Whether it may wait, as its sender says.
    pub fn haste(&self) -> Haste {
        match self.flags {
            flags if flags & URGENT != 0 => Haste::Urgent,
            flags if flags & BACKGROUND != 0 => Haste::Background,
            _ => Haste::Foreground,
        }
    }

    /// Bytes of the whole frame.
    pub fn frame_len(&self) -> usize {
        FRAME_HEADER_LEN + self.control_len as usize + self.payload_len as usize
    }

    /// Checks the control part against the header.
    pub fn verify_control(&self, control: &[u8]) -> Result<(), FrameError> {
        verify("control part", control, self.control_len, self.control_crc)
    }

    /// Checks the payload against the header.
    pub fn verify_payload(&self, payload: &[u8]) -> Result<(), FrameError> {
        verify("payload", payload, self.payload_len, self.payload_crc)
    }
}

fn bounded(part: &'static str, got: u64, expected: u32) -> Result<u32, FrameError> {
    match u32::try_from(got) {
        Ok(len) if len <= expected => Ok(len),
        _ => Err(FrameError::TooLong {
            part,
            expected,
            got,
        }),
    }
}

fn verify(part: &'static str, bytes: &[u8], len: u32, crc: u32) -> Result<(), FrameError> {
    if bytes.len() as u64 != u64::from(len) {
        return Err(FrameError::BadLength {
            part,
            expected: len,
            got: bytes.len() as u64,
        });
    }
    let got = crc32(bytes);
    if got != crc {
        return Err(FrameError::BadCrc {
            part,
            expected: crc,
            got,
        });
    }
    Ok(())
}

/// The bytes of a control part.
pub fn encode_control<T>(value: &T) -> Vec<u8>
where
    T: SchemaWrite<WriteConfig, Src = T>,
{
    control::encode(value)
}

/// The control part whose bytes these are, all of them.
pub fn decode_control<'a, T>(bytes: &'a [u8]) -> Result<T, FrameError>
where
    T: SchemaRead<'a, ReadConfig, Dst = T>,
{
    Ok(control::decode(bytes)?)
}

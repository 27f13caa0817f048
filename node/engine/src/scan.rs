//! Finding the records of one extent without its footer, block by block.
//!
//! A pull parser: [`Scan::want`] says what to read next, [`Scan::feed`] takes the bytes,
//! [`Scan::fail`] that they cannot be read.
//!
//! Invariants:
//! - No length is used that a CRC does not cover. A record counts as whole only when its head, its
//!   table and its payload match their checksums and it says that it stands where it was found.
//! - What is skipped as one is only ever a whole record; after anything else the search goes on at the
//!   next *block*, so a torn or unreadable record hides nothing that stands behind it, or in it.
//! - Only the extent's newest life counts: `floor` is the highest incarnation that anything told of
//!   (header, checkpoint, trailer, any record head); what is older is not seen, and all that was found
//!   is forgotten when the floor rises.
//! - A rotten head raises doubt: it is told, and nothing is appended over it.
//! - A read that fails is split until the blocks that cannot be read are known one by one.

use ashlar_layout::extent::Geometry;
use ashlar_layout::footer::{TRAILER_LEN, Trailer};
use ashlar_layout::ids::{DeviceId, ExtentNo, Incarnation};
use ashlar_layout::record::{RecordHeader, header_len};
use ashlar_layout::stamp::{HeadFault, Place};
use crc32fast::Hasher;

use crate::mutants::mutant;

/// Most bytes asked for at once.
pub(crate) const WINDOW_MAX: u64 = 1024 * 1024;

/// How much of a record is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wholeness {
    /// All of it, and it matches.
    Whole,
    /// The head is; the rest does not match: torn by a crash, or rotten.
    Torn,
    /// The head is; part of the rest cannot be read.
    Unreadable,
}

/// A record whose head is valid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scanned {
    pub header: RecordHeader,
    pub wholeness: Wholeness,
}

/// The search through one extent.
pub(crate) struct Scan {
    geometry: Geometry,
    device: DeviceId,
    extent: ExtentNo,
    /// Where to read next.
    pos: u64,
    end: u64,
    /// Bytes to read next.
    window: u64,
    /// Bytes without which the block at `pos` cannot be judged; 0 if one block will do.
    need: u64,
    /// The table behind the head at this address cannot be read.
    table_lost: Option<u64>,
    payload: Option<Payload>,
    asked: u64,
    floor: Incarnation,
    /// Records of the newest life, in the order in which they stand.
    pub found: Vec<Scanned>,
    /// Blocks that cannot be read: first byte and length of each run.
    pub unreadable: Vec<(u64, u64)>,
    /// Where valid heads stand that were written for other addresses.
    pub misdirected: Vec<u64>,
    /// Where heads stand that were records of this device and do not match their CRC. A head lies in
    /// one sector and is never torn: they are rotten. Of which life they were is not known.
    pub bad_heads: Vec<u64>,
    /// First byte behind everything whose head was recognised, damaged ones included.
    pub tail: u64,
}

/// A record whose payload is being checked.
struct Payload {
    header: RecordHeader,
    hasher: Hasher,
    /// Bytes of payload, and of payload with padding, that are still to come.
    left: u64,
    left_padded: u64,
    unreadable: bool,
}

impl Scan {
    /// A search through `extent`, of whose present life it is known that it is at least `floor`.
    pub fn new(geometry: Geometry, device: DeviceId, extent: ExtentNo, floor: Incarnation) -> Scan {
        let start = geometry.records_start(extent);
        Scan {
            geometry,
            device,
            extent,
            pos: start,
            end: geometry.extent_end(extent),
            window: WINDOW_MAX,
            need: 0,
            table_lost: None,
            payload: None,
            asked: 0,
            floor,
            found: Vec::new(),
            unreadable: Vec::new(),
            misdirected: Vec::new(),
            bad_heads: Vec::new(),
            tail: start,
        }
    }

    /// The highest incarnation that anything told of.
    pub fn incarnation(&self) -> Incarnation {
        self.floor
    }

    /// What to read next; `None` at the end.
    pub fn want(&mut self) -> Option<(u64, usize)> {
        if self.pos >= self.end {
            return None;
        }
        self.asked = self.window.max(self.need).min(self.end - self.pos);
        Some((self.pos, self.asked as usize))
    }

    /// How many bytes were asked for.
    pub fn asked(&self) -> usize {
        self.asked as usize
    }

    fn block(&self) -> u64 {
        u64::from(self.geometry.block_size)
    }

    /// The bytes that were wanted.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.window = (self.window * 2).min(WINDOW_MAX);
        let mut at = 0;
        while at < chunk.len() {
            let here = self.pos;
            if self.payload.is_some() {
                let taken = self.take(&chunk[at..]);
                if self.pos != here + taken {
                    // It was not whole: the search goes on inside of it.
                    return;
                }
                at += taken as usize;
            } else if !self.judge(&chunk[at..]) {
                return;
            } else {
                at += (self.pos - here) as usize;
            }
        }
    }

    /// The bytes that were wanted cannot be read.
    pub fn fail(&mut self) {
        let block = self.block();
        if self.need > block && self.asked <= self.need {
            self.table_lost = Some(self.pos);
            self.need = 0;
            self.window = block;
            return;
        }
        if self.asked > block {
            let half = (self.asked / 2).next_multiple_of(block);
            self.window = half.min(self.asked - block).max(block);
            return;
        }
        match self.unreadable.last_mut() {
            Some((from, len)) if *from + *len == self.pos => *len += block,
            _ => self.unreadable.push((self.pos, block)),
        }
        self.need = 0;
        match &mut self.payload {
            Some(payload) => {
                payload.unreadable = true;
                payload.left = payload.left.saturating_sub(block);
                payload.left_padded -= block;
                self.pos += block;
                self.finish_payload();
            }
            None => self.pos += block,
        }
    }

    /// Looks at the block at `pos`, with which `bytes` begin. False if it takes another read.
    fn judge(&mut self, bytes: &[u8]) -> bool {
        let block = self.block();
        let place = Place {
            device: self.device,
            extent: self.extent,
            incarnation: None,
            address: self.pos,
        };
        let header = match RecordHeader::decode(bytes, &place) {
            Ok(header) => header,
            Err(error) => {
                match error.fault {
                    HeadFault::Misdirected { .. } => self.misdirected.push(self.pos),
                    HeadFault::BadCrc { .. } if RecordHeader::resembles(bytes, &self.device) => {
                        self.bad_heads.push(self.pos);
                        self.tail = self.tail.max(self.pos + block);
                    }
                    _ => {}
                }
                self.judge_trailer(bytes);
                return self.skip();
            }
        };
        let len = header.record_len(self.geometry.block_size);
        if header.incarnation < self.floor || len > self.end - self.pos {
            return self.skip();
        }
        let room = u64::from(header_len(header.payload_len, self.geometry.block_size));
        let table_lost = self.table_lost == Some(self.pos);
        if room > bytes.len() as u64 && !table_lost {
            self.need = room;
            return false;
        }
        self.need = 0;
        self.rise(header.incarnation);
        self.tail = self.tail.max(self.pos + len);
        if table_lost || header.pieces(bytes).is_err() {
            let wholeness = if table_lost {
                Wholeness::Unreadable
            } else {
                Wholeness::Torn
            };
            self.found.push(Scanned { header, wholeness });
            self.pos += block;
            return true;
        }
        self.pos += room;
        self.payload = Some(Payload {
            header,
            hasher: Hasher::new(),
            left: u64::from(header.payload_len),
            left_padded: len - room,
            unreadable: false,
        });
        self.finish_payload();
        true
    }

    /// The extent's last block may hold a trailer: it tells which life was sealed.
    fn judge_trailer(&mut self, bytes: &[u8]) {
        let block = self.block();
        if self.pos + block != self.end {
            return;
        }
        let from = block as usize - TRAILER_LEN;
        let place = Place {
            device: self.device,
            extent: self.extent,
            incarnation: None,
            address: self.end - TRAILER_LEN as u64,
        };
        if let Some(bytes) = bytes.get(from..block as usize)
            && let Ok(trailer) = Trailer::decode(bytes, &place)
        {
            self.rise(trailer.incarnation);
        }
    }

    fn rise(&mut self, incarnation: Incarnation) {
        if incarnation > self.floor {
            self.floor = incarnation;
            self.found.clear();
            let start = self.geometry.records_start(self.extent);
            self.tail = self.bad_heads.last().map_or(start, |at| at + self.block());
        }
    }

    fn skip(&mut self) -> bool {
        self.need = 0;
        self.pos += self.block();
        true
    }

    /// Checks as much of the payload as `bytes` hold; how much that was.
    fn take(&mut self, bytes: &[u8]) -> u64 {
        let Some(payload) = &mut self.payload else {
            return 0;
        };
        let taken = payload.left_padded.min(bytes.len() as u64);
        let data = payload.left.min(taken);
        payload.hasher.update(&bytes[..data as usize]);
        payload.left -= data;
        payload.left_padded -= taken;
        self.pos += taken;
        self.finish_payload();
        taken
    }

    fn finish_payload(&mut self) {
        let Some(payload) = self.payload.take_if(|payload| payload.left_padded == 0) else {
            return;
        };
        let header = payload.header;
        let wholeness = if payload.unreadable {
            Wholeness::Unreadable
        } else if payload.hasher.finalize() == header.payload_crc || mutant!(TrustLength) {
            Wholeness::Whole
        } else {
            Wholeness::Torn
        };
        self.found.push(Scanned { header, wholeness });
        if wholeness != Wholeness::Whole {
            self.pos = header.address + self.block();
        }
    }
}

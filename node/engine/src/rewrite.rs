//! Writing again what may only seem durable.
//!
//! When a flush (or a durable write) fails, what it was to make durable may be dropped from the cache in
//! such a way that reads go on to show it, and later flushes succeed, until power fails. What had been
//! acknowledged is not concerned: an earlier flush made that durable. But recovery shows, and the node
//! then acknowledges, whatever it can read.
//!
//! What is in doubt, and why nothing else is. Let E be the owner epoch of the superblock that was elected.
//! - Whatever owners before E wrote is durable: E's opening flushed it with success before it turned the
//!   superblock, or wrote it again as is done here.
//! - Records of E in *unsealed* extents: each whole one is written again. In a sealed extent all records had
//!   been acknowledged before the footer was written; the footer itself only saves reading.
//! - Headers of unsealed and of checkpoint extents, written by E: a header that vanished would bring back
//!   the extent's former life, whose tombstones may have been freed since because of it.
//! - After a life that ended in order nothing of all that; but in any case
//! - copies of the superblock that hold the elected one: the turn that follows overwrites the *other*
//!   copies first, trusting these. A checkpoint that a superblock names was durable before that was written.
//! - Records that are not whole: of those nothing is promised, and no journal entry comes.
//! - Chunks of indexes: those that a root names were made durable by a flush that ended well before the root
//!   was written, and the others are nobody's. (A *root* is a record as any other.)
//!
//! Invariants:
//! - What is written is what stands there, to the bit, and is checked before it is written: record by record
//!   against its own checksums, everything else against what was read first. Of each sector the states
//!   that a power cut can leave are the same as before, or fewer: it can come at any time. (The superblock is not
//!   turned before all this is durable, so the next opening has the same to do.)
//! - A failure ends the opening; nothing has been served by then.
//! - A piece is one record, or several of at most [`PIECE_MAX`] bytes; few of them are in memory at once.

use ashlar_layout::extent::{ExtentHeader, ExtentKind};
use ashlar_layout::ids::{ExtentNo, OwnerEpoch};
use ashlar_layout::limits::SUPERBLOCK_COPIES;
use ashlar_layout::record::{RecordHeader, header_len};
use ashlar_layout::superblock::{self, SUPERBLOCK_LEN, Superblock};

use crate::api::{Action, IoFailure, Memory};
use crate::error::OpenError;
use crate::opening::{Opened, Opening};
use crate::recovery::{Want, Work};

/// Bytes of a piece at most, unless one record alone is longer.
const PIECE_MAX: u64 = 1024 * 1024;

/// What is read and written again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    at: u64,
    len: u64,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A copy of the superblock.
    Copy(u8),
    /// The header of an extent.
    Header(ExtentNo),
    /// Whole records of an extent, back to back.
    Records(ExtentNo),
}

/// Records in doubt.
pub(crate) struct Doubt {
    since: OwnerEpoch,
    records: Vec<Piece>,
}

impl Doubt {
    /// Nothing that was written by an owner before `since` is in doubt.
    pub fn new(since: OwnerEpoch) -> Doubt {
        Doubt {
            since,
            records: Vec::new(),
        }
    }

    /// A whole record was found in an unsealed extent. They come from back to front.
    pub fn add(&mut self, no: ExtentNo, owner: OwnerEpoch, at: u64, len: u64) {
        if owner < self.since {
            return;
        }
        match self.records.last_mut() {
            Some(last)
                if last.what == What::Records(no)
                    && at + len == last.at
                    && last.len + len <= PIECE_MAX =>
            {
                last.at = at;
                last.len += len;
            }
            _ => self.records.push(Piece {
                at,
                len,
                what: What::Records(no),
            }),
        }
    }
}

impl Work {
    /// Headers in doubt, and the records.
    fn doubtful(&mut self) -> Vec<Piece> {
        let Some(Doubt { since, records }) = self.doubt.take() else {
            return Vec::new();
        };
        let mut pieces = records;
        for no in self.all() {
            let seen = &self.seen[no.0 as usize];
            let Some(header) = seen.header.filter(|header| header.owner_epoch >= since) else {
                continue;
            };
            if seen.scanned || header.kind == ExtentKind::Checkpoint {
                pieces.push(Piece {
                    at: self.geometry.extent_start(no),
                    len: u64::from(self.geometry.block_size),
                    what: What::Header(no),
                });
            }
        }
        pieces
    }

    /// Whether these are the records that were found there.
    fn are_records(&self, no: ExtentNo, at: u64, bytes: &[u8]) -> bool {
        let block_size = self.geometry.block_size;
        let mut from = 0;
        while from < bytes.len() {
            let rest = &bytes[from..];
            let place = self.place(no, at + from as u64);
            let Ok(header) = RecordHeader::decode(rest, &place) else {
                return false;
            };
            let room = header_len(header.payload_len, block_size) as usize;
            let Some(payload) = rest.get(room..room + header.payload_len as usize) else {
                return false;
            };
            if header.pieces(rest).is_err() || crc32fast::hash(payload) != header.payload_crc {
                return false;
            }
            from += header.record_len(block_size) as usize;
        }
        from == bytes.len()
    }
}

impl<M: Memory> Opening<M> {
    /// Asks for everything that is in doubt.
    pub(crate) fn ask_doubtful(&mut self) {
        let (Some(work), Some(superblocks)) = (&mut self.work, &self.superblocks) else {
            return;
        };
        let extent_size = superblocks.current().extent_size;
        let mut pieces = work.doubtful();
        for copy in (0..SUPERBLOCK_COPIES as u8).filter(|copy| superblocks.holds(*copy)) {
            pieces.push(Piece {
                at: superblock::offset(copy, extent_size),
                len: SUPERBLOCK_LEN as u64,
                what: What::Copy(copy),
            });
        }
        let want = |piece: Piece| (Want::Doubtful(piece), piece.at, piece.len as usize);
        self.queue.extend(pieces.into_iter().map(want));
    }

    /// A piece was read for the second time: it is written if it is what it was.
    pub(crate) fn rewrite(
        &mut self,
        piece: Piece,
        buf: Option<M::Buf>,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), OpenError> {
        let Some(work) = &self.work else {
            return Ok(());
        };
        let Piece { at, len, what } = piece;
        let doubtful = |what| OpenError::Doubtful {
            device: work.device,
            offset: at,
            len,
            what,
        };
        let buf = buf.ok_or_else(|| doubtful("the read failed"))?;
        let bytes = &buf[..len as usize];
        let same = match what {
            What::Copy(copy) => {
                let before = self.copies[usize::from(copy)].as_ref();
                Superblock::decode(bytes).is_ok_and(|now| {
                    before.is_some_and(|before| {
                        now.copy == before.copy && now.body_crc() == before.body_crc()
                    })
                })
            }
            What::Header(no) => {
                let before = work.seen[no.0 as usize].header;
                ExtentHeader::decode(bytes, &work.place(no, at)).ok() == before
            }
            What::Records(no) => work.are_records(no, at, bytes),
        };
        if !same {
            return Err(doubtful("the bytes differ"));
        }
        self.report.bytes_rewritten += len;
        self.ios.insert(self.next_io, Want::Rewritten { at });
        out.push(Action::Write {
            io: self.next_io,
            offset: at,
            buf,
            len: len as usize,
            // All of it by the flush that follows.
            durable: false,
        });
        self.next_io += 1;
        Ok(())
    }

    /// A piece was written again.
    pub(crate) fn rewritten(
        &mut self,
        offset: u64,
        result: Result<(), IoFailure>,
    ) -> Result<Option<Box<Opened<M>>>, OpenError> {
        let Some(work) = &self.work else {
            return Ok(None);
        };
        match result {
            Ok(()) => Ok(None),
            Err(failure) => Err(OpenError::Write {
                device: work.device,
                operation: "write of what is in doubt",
                offset,
                failure,
            }),
        }
    }
}

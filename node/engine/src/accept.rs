//! Taking in what is to be appended: it is checked, and put into the queue of its stream.
//!
//! Invariants:
//! - What is queued can be written as it is: its length fits into an extent, and its checksum was compared.
//! - Queues are bounded; beyond that the caller is told to come again.

use ashlar_layout::ids::ShardId;
use ashlar_layout::page::{CHUNK_MAX, GRAIN};
use ashlar_layout::record::{header_len, piece_count, piece_crcs};
use ashlar_layout::root::ROOT_MAX;

use crate::api::{Action, Memory, Output};
use crate::append::Item;
use crate::engine::{Engine, INDEX_QUEUE_MAX, JOURNAL_QUEUE_MAX, QUEUE_MAX, StreamNo, Writing};
use crate::error::EngineError;

impl<M: Memory> Engine<M> {
    /// Checks a shard that is to be written, and queues it unless it may be there already.
    #[expect(clippy::too_many_arguments, reason = "the fields of one event")]
    pub(crate) fn write_shard(
        &mut self,
        op: u64,
        shard: ShardId,
        mut buf: M::Buf,
        payload_len: u32,
        payload_crc: u32,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        self.accepting()?;
        self.mark(&shard);
        let device = self.device;
        let bad = |what, expected, got| EngineError::BadPayload {
            device,
            what,
            expected,
            got,
        };
        let most = self.payload_max();
        if payload_len > most {
            return Err(bad("length", u64::from(most), u64::from(payload_len)));
        }
        let len = self.record_len(payload_len);
        if (buf.len() as u64) < len {
            return Err(bad("buffer", len, buf.len() as u64));
        }
        let from = self.header_len(payload_len) as usize;
        let to = from + payload_len as usize;
        let mut pieces = Vec::with_capacity(piece_count(payload_len) as usize);
        let crc = piece_crcs(&buf[from..to], |_, crc| pieces.push(crc));
        if crc != payload_crc {
            return Err(bad("CRC", u64::from(payload_crc), u64::from(crc)));
        }
        buf[to..len as usize].fill(0);
        if self.shadows.contains(&shard) {
            return Err(EngineError::Deleted { device, shard });
        }
        match self.deleting.get(&shard) {
            None => {}
            Some(ops) if ops.is_empty() => {
                return Err(EngineError::Busy {
                    device,
                    what: "the shard's tombstone is being written again",
                });
            }
            Some(_) => return Err(EngineError::Deleted { device, shard }),
        }
        if let Some(writing) = self.writing.get_mut(&shard) {
            if writing.payload_crc != payload_crc || writing.payload_len != payload_len {
                let stored = writing.payload_crc;
                return Err(EngineError::Exists {
                    device,
                    shard,
                    stored,
                    got: payload_crc,
                });
            }
            writing.ops.push(op);
            return Ok(());
        }
        let stream = &self.streams[StreamNo::Data as usize];
        if stream.queue.len() >= QUEUE_MAX {
            return Err(EngineError::Busy {
                device,
                what: "too many appends wait",
            });
        }
        let item = Item::Shard {
            shard,
            buf,
            payload_len,
            payload_crc,
            pieces,
            copy: None,
        };
        self.check_stored(shard, item, mem, out)?;
        let writing = Writing {
            payload_len,
            payload_crc,
            ops: vec![op],
            deletes: Vec::new(),
        };
        self.writing.insert(shard, writing);
        Ok(())
    }

    /// Most bytes of payload that fit into an extent of this device.
    pub(crate) fn payload_max(&self) -> u32 {
        use ashlar_layout::limits::{SHARD_SIZE_MAX, SUPERBLOCK_ZONE};
        let block = u64::from(self.geometry.block_size);
        // Zone, extent header, footer of one entry, and the record's own header.
        let around = SUPERBLOCK_ZONE
            + block
            + ashlar_layout::footer::footer_len(1, self.geometry.block_size)
            + u64::from(header_len(SHARD_SIZE_MAX, self.geometry.block_size));
        let room = self.geometry.extent_size.saturating_sub(around);
        u32::try_from(room).unwrap_or(u32::MAX).min(SHARD_SIZE_MAX)
    }

    pub(crate) fn append_journal(&mut self, item: Item<M::Buf>) -> Result<(), EngineError> {
        self.accepting()?;
        let device = self.device;
        let bad = |what, expected, got| EngineError::BadPayload {
            device,
            what,
            expected,
            got,
        };
        if let Item::Journal {
            first,
            last,
            entries,
            ..
        } = &item
        {
            let most = self.journal_max();
            if entries.is_empty() || entries.len() as u64 > u64::from(most) {
                return Err(bad("length", u64::from(most), entries.len() as u64));
            }
            if first > last {
                return Err(bad("first sequence number", last.0, first.0));
            }
        }
        let stream = &mut self.streams[StreamNo::Journal as usize];
        if stream.queue.len() >= JOURNAL_QUEUE_MAX {
            return Err(EngineError::Busy {
                device,
                what: "too many appends wait",
            });
        }
        stream.queue.push_back(item);
        Ok(())
    }

    /// Begins a delete: the shard's record is looked at first, since the index only says where it
    /// may be.
    pub(crate) fn delete_shard(
        &mut self,
        op: u64,
        shard: ShardId,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if let Some(writing) = self.writing.get_mut(&shard) {
            writing.deletes.push(op);
            return;
        }
        if let Some(ops) = self.deleting.get_mut(&shard) {
            ops.push(op);
            return;
        }
        if self.shadows.contains(&shard) {
            out.push(Action::Done {
                op,
                result: Ok(Output::Durable),
            });
            return;
        }
        let hash = self.index.hash(&shard);
        let known = self.index.candidates(hash).next().is_some();
        if !known && self.blind.is_none() {
            out.push(Action::Done {
                op,
                result: Ok(Output::Durable),
            });
            return;
        }
        let stream = &mut self.streams[StreamNo::Data as usize];
        if stream.queue.len() >= QUEUE_MAX {
            let what = "too many appends wait";
            let error = EngineError::Busy {
                device: self.device,
                what,
            };
            out.push(Action::Done {
                op,
                result: Err(error),
            });
            return;
        }
        if !known {
            let item = Item::Tombstone {
                shard,
                targets: Vec::new(),
                hold: true,
                shadow: false,
                carried: false,
            };
            stream.queue.push_back(item);
        } else if let Err(error) = self.check_doomed(shard, mem, out) {
            out.push(Action::Done {
                op,
                result: Err(error),
            });
            return;
        }
        self.deleting.insert(shard, vec![op]);
    }

    /// Most bytes of a chunk of the index: whole grains, 1 MiB at most, less on a device of small extents.
    pub fn chunk_max(&self) -> u32 {
        let room = self.root_max() as usize;
        CHUNK_MAX.min(room - room % GRAIN) as u32
    }

    /// Most bytes of a root of the index: 1 MiB, less on a device of small extents.
    pub fn root_max(&self) -> u32 {
        // In front of a record there may be almost a grain that is not used.
        (ROOT_MAX as u32).min(self.payload_max().saturating_sub(GRAIN as u32))
    }

    /// Takes in a chunk or a root.
    pub(crate) fn append_index(&mut self, item: Item<M::Buf>) -> Result<(), EngineError> {
        self.accepting()?;
        let device = self.device;
        let (most, whole) = match &item {
            Item::Chunk { .. } => (self.chunk_max(), GRAIN as u32),
            _ => (self.root_max(), 1),
        };
        let len = item.payload_len();
        if len == 0 || len > most || !len.is_multiple_of(whole) {
            return Err(EngineError::BadPayload {
                device,
                what: "length",
                expected: u64::from(most),
                got: u64::from(len),
            });
        }
        let stream = &mut self.streams[StreamNo::Index as usize];
        if stream.queue.len() >= INDEX_QUEUE_MAX {
            return Err(EngineError::Busy {
                device,
                what: "too many appends wait",
            });
        }
        stream.queue.push_back(item);
        Ok(())
    }

    /// Takes in a sync of the index.
    pub(crate) fn take_sync(&mut self, op: u64) -> Result<(), EngineError> {
        self.accepting()?;
        if self.syncs.len() >= INDEX_QUEUE_MAX {
            return Err(EngineError::Busy {
                device: self.device,
                what: "too many syncs wait",
            });
        }
        self.syncs.push(op);
        Ok(())
    }
}

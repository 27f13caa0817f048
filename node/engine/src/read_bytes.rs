//! Reading the journal and the index: bytes as they stand on the device.
//!
//! Invariants:
//! - Only bytes of extents in use are read, of the kind that is asked for, and no more than a record can have (and
//!   a page, for whoever reads ahead).
//! - Nothing is verified here: each entry, page and root carries a CRC of its own, which the caller checks.

use ashlar_layout::extent::ExtentKind;
use ashlar_layout::limits::JOURNAL_BATCH_MAX;
use ashlar_layout::page::{CHUNK_MAX, PAGE_MAX};

use crate::api::{Action, IoFailure, Memory, Output};
use crate::engine::{Engine, Purpose};
use crate::error::{EngineError, Finding, FindingKind};
use crate::extents::State;

impl<M: Memory> Engine<M> {
    pub(crate) fn read_bytes(
        &mut self,
        kind: ExtentKind,
        op: u64,
        at: u64,
        len: u32,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        self.accepting()?;
        let device = self.device;
        let block = u64::from(self.geometry.block_size);
        let extent = self.geometry.extent_of(at).filter(|no| {
            let extent = self.extents.get(*no);
            extent.kind == Some(kind) && extent.state != State::Free
        });
        let limit = extent.map_or(0, |no| self.geometry.extent_end(no));
        let end = at.saturating_add(u64::from(len));
        let most = match kind {
            ExtentKind::Index => (CHUNK_MAX + PAGE_MAX) as u32,
            _ => JOURNAL_BATCH_MAX,
        };
        if end > limit || len > most {
            let len = u64::from(len);
            return Err(EngineError::BadRange {
                device,
                offset: at,
                len,
                limit,
            });
        }
        let from = at - at % block;
        let bytes = (end.next_multiple_of(block) - from).max(block) as usize;
        let Some(buf) = mem.alloc(bytes) else {
            return Err(self.no_buffer());
        };
        let io = self.io(Purpose::Bytes { op, at, len });
        out.push(Action::Read {
            io,
            offset: from,
            buf,
            len: bytes,
        });
        Ok(())
    }

    pub(crate) fn bytes_read(
        &mut self,
        op: u64,
        at: u64,
        len: u32,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let device = self.device;
        let failure = match (result, buf) {
            (Ok(()), Some(buf)) => {
                let from = (at % u64::from(self.geometry.block_size)) as usize;
                let range = from..from + len as usize;
                out.push(Action::Done {
                    op,
                    result: Ok(Output::Bytes { buf, range }),
                });
                return;
            }
            (Ok(()), None) => IoFailure { errno: 5 },
            (Err(failure), _) => failure,
        };
        let (offset, len) = (at, u64::from(len));
        let kind = FindingKind::Unreadable;
        self.find(
            Finding {
                kind,
                device,
                offset,
                len,
                shard: None,
                journal: None,
            },
            out,
        );
        let error = EngineError::Unreadable {
            device,
            offset,
            len,
            failure,
        };
        out.push(Action::Done {
            op,
            result: Err(error),
        });
    }
}

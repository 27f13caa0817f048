//! Reads of metadata, and of the objects that ride in the journal.
//!
//! Invariants:
//! - only a replica that serves answers, and it says itself whether it does;
//! - an inline object goes out only after its entry's checksum, number, term, length and the manifest's CRC
//!   have all matched; if they do not, another replica is asked and the entry restored.

use ashlar_layout::crc::crc32;
use ashlar_layout::frame::encode_control;
use ashlar_layout::ids::PartitionId;
use ashlar_layout::limits::FRAME_CONTROL_MAX;
use ashlar_layout::message::{ErrorCode, FindingKind, Reply, Request, WireError};
use ashlar_node_engine::api;
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::{Buf, Chunk, ConnId, Io};

use crate::core::{Core, InlineRead, Pending, Todo};
use crate::outgoing::{self, Payload};

/// How often a lost inline object is asked of the other replicas before the read fails.
const INLINE_TRIES: u32 = 3;

impl Core {
    pub(crate) fn lookup(
        &mut self,
        conn: ConnId,
        request: u64,
        partition: PartitionId,
        bucket: String,
        key: String,
        payload: bool,
    ) -> Option<Result<Reply, WireError>> {
        let found = self.replica(partition).and_then(|replica| {
            let (meta, inline) = self.replicas[replica].serve()?.lookup(&bucket, &key)?;
            Ok((replica, meta, inline))
        });
        match found {
            Err(error) => Some(Err(error)),
            Ok((replica, meta, Some(at))) if payload && meta.manifest.size > 0 => {
                self.read_inline(InlineRead {
                    conn,
                    request,
                    replica,
                    bucket,
                    key,
                    meta,
                    at,
                    tries: 0,
                });
                None
            }
            Ok((_, meta, _)) => Some(Ok(Reply::Found { meta })),
        }
    }

    /// Reads an inline object's entry from where the index said that it is.
    fn read_inline(&mut self, read: InlineRead) {
        let device = self.replicas[read.replica].device;
        let (at, len) = (read.at.at, read.at.len);
        let op = self.ops.insert(Pending::Inline(read));
        let event = api::Event::ReadJournal { op, at, len };
        self.todo.push_back(Todo::Engine { device, event });
    }

    /// Reads an inline object once more, from where the index says that it is now.
    pub(crate) fn read_inline_again(&mut self, read: InlineRead, io: &mut Io) {
        let looked_up = self.replicas[read.replica]
            .serve()
            .and_then(|replica| replica.lookup(&read.bucket, &read.key));
        let reply = match looked_up {
            Ok((meta, Some(at))) if meta.manifest.size > 0 => {
                return self.read_inline(InlineRead { meta, at, ..read });
            }
            // Overwritten by another kind of object while its payload was on the way.
            Ok((meta, _)) => Reply::Found { meta },
            Err(error) => Reply::Error(error),
        };
        self.answer(io, read.conn, read.request, &reply, Payload::None);
    }

    /// An inline object's entry came from the device: verified before a byte of it goes out.
    pub(crate) fn inline_read(
        &mut self,
        mut read: InlineRead,
        result: Result<api::Output<Buf>, EngineError>,
        io: &mut Io,
    ) {
        if let Err(EngineError::Fenced { .. } | EngineError::ShuttingDown { .. }) = result {
            let error = Reply::Error(self.replicas[read.replica].unavailable());
            return self.answer(io, read.conn, read.request, &error, Payload::None);
        }
        if let Ok(api::Output::Bytes { buf, range }) = result {
            let start = range.start;
            let found = ashlar_layout::journal::entries(&buf[range])
                .next()
                .and_then(Result::ok)
                .filter(|e| {
                    (e.header.seq, e.header.term) == (read.at.seq, read.at.term)
                        && e.inline.len() as u64 == read.meta.manifest.size
                })
                .map(|e| (e.inline_offset(), e.inline.len(), crc32(e.inline)))
                .filter(|(_, _, crc)| *crc == read.meta.manifest.crc);
            if let Some((offset, len, crc)) = found {
                let from = start + offset;
                let chunk = Chunk::Buf(buf, from..from + len);
                let payload = Payload::Chunk {
                    chunk,
                    len: len as u32,
                    crc,
                };
                let reply = Reply::Found { meta: read.meta };
                return self.answer(io, read.conn, read.request, &reply, payload);
            }
        }
        read.tries += 1;
        if read.tries > INLINE_TRIES {
            let error = outgoing::error(
                ErrorCode::Corrupt,
                format!(
                    "the entry {} that holds {}/{} is damaged here and no other replica gave it",
                    read.at.seq, read.bucket, read.key
                ),
            );
            return self.answer(io, read.conn, read.request, &error, Payload::None);
        }
        let device = self.replicas[read.replica].device;
        self.devices[device].found(FindingKind::Rot);
        self.inline_lost(read, io);
    }

    pub(crate) fn list(&self, request: &Request) -> Result<Reply, WireError> {
        let Request::List {
            partition,
            bucket,
            prefix,
            delimiter,
            after,
            max,
        } = request
        else {
            return Err(WireError {
                code: ErrorCode::Internal,
                detail: "not a list".into(),
            });
        };
        let replica = self.replica(*partition)?;
        let replica = self.replicas[replica].serve()?;
        let mut max = (*max).clamp(1, ashlar_layout::limits::LIST_PAGE_MAX);
        loop {
            let page = replica.list(&ashlar_cluster_journal::ListParams {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                delimiter: delimiter.clone(),
                after: after.clone(),
                max,
            })?;
            let reply = Reply::Page(page);
            // Long keys make a page too large for a frame: then it is a shorter page.
            if max == 1 || encode_control(&reply).len() <= FRAME_CONTROL_MAX as usize {
                return Ok(reply);
            }
            max = (max / 2).max(1);
        }
    }
}

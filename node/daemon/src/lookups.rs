//! Reads of metadata, and of the objects that ride in the journal.
//!
//! Invariants:
//! - only a replica that serves answers, and it says itself whether it does;
//! - an inline object goes out only after its entry's checksum, number, term, length and the manifest's CRC
//!   have all matched; if they do not, another replica is asked and the entry restored.

use ashlar_layout::crc::crc32;
use ashlar_layout::frame::encode_control;
use ashlar_layout::limits::FRAME_CONTROL_MAX;
use ashlar_layout::message::{ErrorCode, FindingKind, Reply, Request, WireError};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api;
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::{Buf, Chunk, ConnId, Io};

use crate::core::{Core, Found, InlineRead, Pending, Todo};
use crate::outgoing::{self, Payload};
use crate::replicas::Waiting;

/// How often a lost inline object is asked of the other replicas before the read fails.
const INLINE_TRIES: u32 = 3;

impl Core {
    /// Answers a read of metadata at the head. While the head's lease is out the read waits, if it may:
    /// from `now` on.
    pub(crate) fn read_metadata(
        &mut self,
        read: Waiting,
        replica: usize,
        now: Instant,
        may_wait: bool,
        io: &mut Io,
    ) {
        let slot = &self.replicas[replica];
        let out = slot.in_office() && slot.serve().is_ok_and(|r| !r.serving(now));
        if out && may_wait {
            let Some(read) = self.wait(replica, read, now) else {
                return;
            };
            let error =
                outgoing::error(ErrorCode::Busy, "too many reads wait for the head's lease");
            return self.answer(io, read.conn, read.number, &error, Payload::None);
        }
        let Waiting {
            conn,
            number,
            request,
        } = read;
        let outcome = match request {
            Request::Lookup {
                bucket,
                key,
                payload,
                ..
            } => self.lookup((conn, number), replica, bucket, key, payload, now),
            Request::ListBuckets { after, max, .. } => Some(slot.serve().and_then(|replica| {
                let (buckets, more) = replica.list_buckets(now, &after, max)?;
                Ok(Reply::Buckets { buckets, more })
            })),
            request => Some(self.list(replica, &request, now)),
        };
        match outcome {
            None => {}
            Some(Ok(reply)) => self.answer(io, conn, number, &reply, Payload::None),
            Some(Err(error)) => self.answer(io, conn, number, &Reply::Error(error), Payload::None),
        }
    }

    fn lookup(
        &mut self,
        (conn, request): (ConnId, u64),
        replica: usize,
        bucket: String,
        key: String,
        payload: bool,
        now: Instant,
    ) -> Option<Result<Reply, WireError>> {
        let found = match self.found(replica, &bucket, &key, now) {
            Err(error) => return Some(Err(error)),
            Ok(found) => found,
        };
        match found.at {
            Some(at) if payload && found.meta.manifest.size > 0 => {
                self.read_inline(InlineRead {
                    conn,
                    request,
                    replica,
                    bucket,
                    key,
                    found: Box::new(found),
                    at,
                    tries: 0,
                });
                None
            }
            _ => Some(Ok(found.reply())),
        }
    }

    fn found(
        &self,
        replica: usize,
        bucket: &str,
        key: &str,
        now: Instant,
    ) -> Result<Found, WireError> {
        let replica = self.replicas[replica].serve()?;
        let (meta, at, as_of, config) = replica.lookup(now, bucket, key)?;
        Ok(Found {
            meta,
            at,
            as_of,
            config,
        })
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
    pub(crate) fn read_inline_again(&mut self, read: InlineRead, now: Instant, io: &mut Io) {
        let reply = match self.found(read.replica, &read.bucket, &read.key, now) {
            Ok(found) => match found.at {
                Some(at) if found.meta.manifest.size > 0 => {
                    let found = Box::new(found);
                    return self.read_inline(InlineRead { found, at, ..read });
                }
                // Overwritten by another kind of object while its payload was on the way.
                _ => found.reply(),
            },
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
                        && e.inline.len() as u64 == read.found.meta.manifest.size
                })
                .map(|e| (e.inline_offset(), e.inline.len(), crc32(e.inline)))
                .filter(|(_, _, crc)| *crc == read.found.meta.manifest.crc);
            if let Some((offset, len, crc)) = found {
                let from = start + offset;
                let chunk = Chunk::Buf(buf, from..from + len);
                let payload = Payload::Chunk {
                    chunk,
                    len: len as u32,
                    crc,
                };
                let reply = read.found.reply();
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

    fn list(&self, replica: usize, request: &Request, now: Instant) -> Result<Reply, WireError> {
        let Request::List {
            bucket,
            prefix,
            delimiter,
            after,
            max,
            ..
        } = request
        else {
            return Err(WireError {
                code: ErrorCode::Internal,
                detail: "not a list".into(),
            });
        };
        let replica = self.replicas[replica].serve()?;
        let mut max = (*max).clamp(1, ashlar_layout::limits::LIST_PAGE_MAX);
        loop {
            let params = ashlar_cluster_journal::ListParams {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                delimiter: delimiter.clone(),
                after: after.clone(),
                max,
            };
            let reply = Reply::Page(replica.list(now, &params)?);
            // Long keys make a page too large for a frame: then it is a shorter page.
            if max == 1 || encode_control(&reply).len() <= FRAME_CONTROL_MAX as usize {
                return Ok(reply);
            }
            max = (max / 2).max(1);
        }
    }
}

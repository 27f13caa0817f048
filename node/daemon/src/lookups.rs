//! Reads of metadata, and of the objects that ride in the journal.
//!
//! Invariants:
//! - only a replica that serves answers, and it says itself whether it does; any one makes digests of its index;
//! - an inline object goes out only after the manifest's CRC has matched, and if it was read from its entry,
//!   that one's checksum, number, term and length as well; if they do not, it is asked of another replica;
//! - who reads waits in one place only: for the head's lease, for the replica's answer, for the device, or for
//!   a payload to be restored; and is answered once.

use ashlar_cluster_index::Name;
use ashlar_cluster_journal::{self as journal, Answer, Ask, ListParams};
use ashlar_layout::crc::crc32;
use ashlar_layout::digest::DIGEST_SCHEME;
use ashlar_layout::frame::{FrameHeader, encode_control};
use ashlar_layout::ids::{DeviceNo, Epoch, PartitionId, Seq};
use ashlar_layout::limits::{FRAME_CONTROL_MAX, LIST_PAGE_MAX};
use ashlar_layout::message::{ErrorCode, FindingKind, Reply, Request, WireError};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api;
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::{Buf, Chunk, ConnId, Driver};
use bytes::Bytes;

use crate::core::{Core, Found, InlineRead, Pending, Todo};
use crate::outgoing::{self, Payload};

/// How often a lost inline object is asked of the other replicas before the read fails.
const INLINE_TRIES: u32 = 3;

/// A read of metadata that is under way.
pub(crate) struct Reading {
    pub(crate) conn: ConnId,
    pub(crate) number: u64,
    /// `Lookup`, a list of anything, or `Digest`.
    request: Request,
    /// Entries that a page may have, as far as that is known: a longer one did not fit.
    max: u32,
    /// What was found is no version: it stands under the name of the current object alone, also if it was asked for as
    /// the null version.
    untagged: bool,
    /// How often its payload was lost.
    tries: u32,
    /// The caller's map: what comes behind a page, it says.
    epoch: Epoch,
}

impl Reading {
    /// A request.
    pub(crate) fn new(conn: ConnId, header: &FrameHeader, request: Request) -> Reading {
        let max = match &request {
            Request::List { max, .. }
            | Request::ListVersions { max, .. }
            | Request::ListBuckets { max, .. } => *max,
            _ => 1,
        };
        Reading {
            conn,
            number: header.request,
            request,
            max: max.clamp(1, LIST_PAGE_MAX),
            untagged: false,
            tries: 0,
            epoch: header.epoch,
        }
    }

    /// What is to be asked of the replica, if this is a read of metadata.
    fn ask(&self) -> Option<Ask> {
        Some(match &self.request {
            Request::Lookup {
                bucket, key, id, ..
            } => Ask::Lookup {
                bucket: bucket.clone(),
                key: key.clone(),
                id: *id,
            },
            Request::ListVersions {
                bucket,
                prefix,
                delimiter,
                after,
                after_id,
                ..
            } => {
                let params = ListParams {
                    bucket: bucket.clone(),
                    prefix: prefix.clone(),
                    delimiter: delimiter.clone(),
                    after: after.clone(),
                    max: self.max,
                };
                Ask::Versions(params, *after_id)
            }
            Request::List {
                bucket,
                prefix,
                delimiter,
                after,
                ..
            } => Ask::List(ListParams {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                delimiter: delimiter.clone(),
                after: after.clone(),
                max: self.max,
            }),
            Request::ListBuckets { after, .. } => Ask::Buckets {
                after: after.clone(),
                max: self.max,
            },
            Request::Digest {
                at, after, entries, ..
            } => Ask::Digest {
                at: *at,
                after: after.clone(),
                max: *entries,
            },
            _ => return None,
        })
    }

    /// The object that was found, or the version of one.
    pub(crate) fn name(&self) -> Name {
        let (bucket, key, id) = match &self.request {
            Request::Lookup {
                bucket, key, id, ..
            } => (bucket.as_str(), key.as_str(), id.filter(|_| !self.untagged)),
            _ => ("", "", None),
        };
        Name {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            id,
        }
    }

    /// Whether it wants the object itself, if that is inline.
    fn wants_payload(&self) -> bool {
        matches!(self.request, Request::Lookup { payload: true, .. })
    }
}

impl Core {
    /// Begins a digest of a replica's index, whatever it is in its chain.
    pub(crate) fn digest(
        &mut self,
        reading: Reading,
        (partition, device): (PartitionId, DeviceNo),
        io: &mut impl Driver,
    ) {
        let mut slots = self.replicas.iter();
        let held = slots.position(|it| it.partition == partition && it.me == device && !it.over);
        let Some(replica) = held else {
            let detail = format!(
                "partition {partition} has no replica on device {device} on this core of node {}",
                self.shared.node
            );
            let error = outgoing::error(ErrorCode::NotHere, detail);
            return self.answer(io, reading.conn, reading.number, &error, Payload::None);
        };
        self.ask(replica, reading, io);
    }

    /// Begins a read of metadata at the head. While the head's lease is out the read waits, if it may:
    /// from `now` on.
    pub(crate) fn read_metadata(
        &mut self,
        reading: Reading,
        replica: usize,
        now: Instant,
        may_wait: bool,
        io: &mut impl Driver,
    ) {
        let slot = &self.replicas[replica];
        let held = slot.replica.as_ref();
        let out = held.is_some_and(|held| held.in_office() && !held.serving(now));
        if out && may_wait {
            let Some(reading) = self.wait(replica, reading, now) else {
                return;
            };
            let error =
                outgoing::error(ErrorCode::Busy, "too many reads wait for the head's lease");
            return self.answer(io, reading.conn, reading.number, &error, Payload::None);
        }
        self.ask(replica, reading, io);
    }

    /// Asks the replica.
    pub(crate) fn ask(&mut self, replica: usize, reading: Reading, io: &mut impl Driver) {
        let slot = &mut self.replicas[replica];
        if slot.replica.is_none() {
            let error = Reply::Error(slot.unavailable());
            return self.answer(io, reading.conn, reading.number, &error, Payload::None);
        }
        if let Request::ListVersions {
            after_id: Some(Seq(0 | u64::MAX)),
            ..
        } = reading.request
        {
            // The one is no entry's number, the other one is a place among versions, and not a name.
            let error = outgoing::error(ErrorCode::BadRequest, "no version has that name");
            return self.answer(io, reading.conn, reading.number, &error, Payload::None);
        }
        if let Request::Digest { scheme, .. } = reading.request
            && scheme != DIGEST_SCHEME
        {
            let detail = format!(
                "digests of scheme {scheme} are wanted, and this program makes those of {DIGEST_SCHEME}: the two are \
                 not compared"
            );
            let error = outgoing::error(ErrorCode::BadRequest, detail);
            return self.answer(io, reading.conn, reading.number, &error, Payload::None);
        }
        let Some(ask) = reading.ask() else {
            let error = outgoing::error(ErrorCode::Internal, "this is no read of metadata");
            return self.answer(io, reading.conn, reading.number, &error, Payload::None);
        };
        let reply_to = slot.readers.insert(reading);
        let event = journal::Event::Ask { reply_to, ask };
        self.todo.push_back(Todo::Replica { replica, event });
    }

    /// The replica has answered.
    pub(crate) fn asked(
        &mut self,
        replica: usize,
        reply_to: u64,
        result: Result<Answer, WireError>,
        io: &mut impl Driver,
    ) {
        let Some(mut reading) = self.replicas[replica].readers.remove(reply_to) else {
            return;
        };
        if let Ok(Answer::Found { meta, .. }) = &result {
            reading.untagged = meta.tag.is_none();
        }
        let reply = match result {
            Err(error) => Reply::Error(error),
            Ok(Answer::Found {
                meta,
                payload,
                place,
                as_of,
                config,
            }) => {
                let found = Found {
                    meta,
                    as_of,
                    config,
                };
                return match place {
                    Some(at) if reading.wants_payload() && found.meta.manifest.size > 0 => {
                        let read = InlineRead {
                            reading,
                            replica,
                            found,
                            at,
                        };
                        self.read_inline(Box::new(read));
                    }
                    _ => self.found(replica, reading, found, payload, io),
                };
            }
            Ok(Answer::Page(page)) => return self.listed(replica, reading, Reply::Page(page), io),
            Ok(Answer::Versions(page)) => {
                return self.listed(replica, reading, Reply::Versions(page), io);
            }
            Ok(Answer::Buckets { buckets, more }) => {
                let reply = Reply::Buckets { buckets, more };
                return self.listed(replica, reading, reply, io);
            }
            Ok(Answer::Digest { applied, digest }) => {
                let digest = digest.map(Box::new);
                Reply::Digest { applied, digest }
            }
        };
        self.answer(io, reading.conn, reading.number, &reply, Payload::None);
    }

    /// An object was found, and its payload with it if the index has that.
    fn found(
        &mut self,
        replica: usize,
        reading: Reading,
        found: Found,
        payload: Bytes,
        io: &mut impl Driver,
    ) {
        let mut out = Payload::None;
        if reading.wants_payload() && !payload.is_empty() {
            let manifest = &found.meta.manifest;
            let crc = crc32(&payload);
            if crc != manifest.crc || payload.len() as u64 != manifest.size {
                return self.inline_lost(replica, reading, found.meta.version, io);
            }
            out = Payload::Chunk {
                len: payload.len() as u32,
                crc,
                chunk: Chunk::Bytes(payload),
            };
        }
        self.answer(io, reading.conn, reading.number, &found.reply(), out);
    }

    /// A page was found. Long keys make it too large for a frame: then it is a shorter page.
    fn listed(&mut self, replica: usize, mut reading: Reading, reply: Reply, io: &mut impl Driver) {
        if reading.epoch < self.maps.map.epoch {
            // The partition may have got other bounds while the page was made.
            let detail = format!(
                "the map is of epoch {} now, and was of {} when the list was asked for",
                self.maps.map.epoch, reading.epoch
            );
            let error = outgoing::error(ErrorCode::StaleEpoch, detail);
            let map = Payload::Bytes(self.maps.json.clone());
            return self.answer(io, reading.conn, reading.number, &error, map);
        }
        if reading.max > 1 && encode_control(&reply).len() > FRAME_CONTROL_MAX as usize {
            reading.max /= 2;
            return self.ask(replica, reading, io);
        }
        self.answer(io, reading.conn, reading.number, &reply, Payload::None);
    }

    /// Reads an inline object's entry from where the index said that it is.
    pub(crate) fn read_inline(&mut self, read: Box<InlineRead>) {
        let device = self.replicas[read.replica].device;
        let (at, len) = (read.at.at, read.at.len);
        let op = self.ops.insert(Pending::Inline(read));
        let event = api::Event::ReadJournal { op, at, len };
        self.todo.push_back(Todo::Engine { device, event });
    }

    /// An inline object's entry came from the device: verified before a byte of it goes out.
    pub(crate) fn inline_read(
        &mut self,
        read: Box<InlineRead>,
        result: Result<api::Output<Buf>, EngineError>,
        io: &mut impl Driver,
    ) {
        let InlineRead {
            reading,
            replica,
            found,
            at,
        } = *read;
        if let Err(EngineError::Fenced { .. } | EngineError::ShuttingDown { .. }) = result {
            let error = Reply::Error(self.replicas[replica].unavailable());
            return self.answer(io, reading.conn, reading.number, &error, Payload::None);
        }
        let manifest = &found.meta.manifest;
        if let Ok(api::Output::Bytes { buf, range }) = result {
            let start = range.start;
            let entry = ashlar_layout::journal::entries(&buf[range])
                .next()
                .and_then(Result::ok)
                .filter(|e| {
                    (e.header.seq, e.header.term) == (at.seq, at.term)
                        && e.inline.len() as u64 == manifest.size
                })
                .map(|e| (e.inline_offset(), e.inline.len(), crc32(e.inline)))
                .filter(|(_, _, crc)| *crc == manifest.crc);
            if let Some((offset, len, crc)) = entry {
                let from = start + offset;
                let chunk = Chunk::Buf(buf, from..from + len);
                let payload = Payload::Chunk {
                    chunk,
                    len: len as u32,
                    crc,
                };
                let reply = found.reply();
                return self.answer(io, reading.conn, reading.number, &reply, payload);
            }
        }
        self.inline_lost(replica, reading, found.meta.version, io);
    }

    /// An inline object's payload is not to be had here: it is restored, unless that was tried often enough.
    fn inline_lost(
        &mut self,
        replica: usize,
        mut reading: Reading,
        version: Seq,
        io: &mut impl Driver,
    ) {
        reading.tries += 1;
        if reading.tries > INLINE_TRIES {
            let name = reading.name();
            let error = outgoing::error(
                ErrorCode::Corrupt,
                format!(
                    "the entry {version} that holds {}/{} is damaged here and no other replica gave it",
                    name.bucket, name.key
                ),
            );
            return self.answer(io, reading.conn, reading.number, &error, Payload::None);
        }
        let device = self.replicas[replica].device;
        self.devices[device].found(FindingKind::Rot);
        self.restore(replica, reading, version, io);
    }
}

//! What a record that was read turns out to be, and what follows from it.
//!
//! Invariants:
//! - Bytes go out only if the record's head and table match their CRCs, the head names this shard,
//!   this device, extent, incarnation and address, and every piece that the bytes lie in matches its CRC.
//! - What does not match is a finding, unless the index has let go of the place meanwhile: then the
//!   shard was deleted or copied elsewhere, and its extent perhaps used again, while the read was under way. A read
//!   for a client then asks the index once more; writes and deletes of a shard are not under way while it is copied.
//! - Of several candidates the first that is whole is the answer; an error only if none is.

use ashlar_layout::diagnosis::diagnose;
use ashlar_layout::record::{RecordHeader, Subject, cover, header_len};
use ashlar_layout::stamp::Place;

use crate::api::{Action, Memory, Output};
use crate::append::{Item, Target, What};
use crate::engine::{Engine, StreamNo};
use crate::error::{EngineError, Finding, FindingKind};
use crate::mutants::mutant;
use crate::read::{Goal, Read, Span, SpanState};

/// What reading a candidate came to.
pub(crate) enum Verdict<B> {
    /// It is the shard, and these bytes of it match. `start` is where the range begins in `buf`.
    Good {
        header: RecordHeader,
        buf: B,
        start: usize,
        len: usize,
    },
    /// It is the shard; only its head was asked for. Bytes of its record.
    Named(u64),
    /// It is another shard, or the place was let go.
    Other,
    /// It is the shard, and there is no such range.
    NoRange(EngineError),
    /// It does not match, or cannot be read.
    Bad(Finding, EngineError),
    /// These bytes of the record are needed too.
    More { from: u64, len: u64 },
}

impl<M: Memory> Engine<M> {
    pub(crate) fn conclude(
        &mut self,
        id: u64,
        mut read: Read<M::Buf>,
        verdict: Verdict<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        match verdict {
            Verdict::Good {
                header,
                buf,
                start,
                len,
            } => match read.goal {
                Goal::Range { op, .. } => {
                    let range = start..start + len;
                    let (shard_len, shard_crc) = (header.payload_len, header.payload_crc);
                    let output = Output::Shard {
                        buf,
                        range,
                        shard_len,
                        shard_crc,
                    };
                    out.push(Action::Done {
                        op,
                        result: Ok(output),
                    });
                    return;
                }
                Goal::Stored { .. } => return self.found_stored(read, &header, mem, out),
                Goal::Doomed { .. } => {}
            },
            Verdict::Named(len) => {
                if let Goal::Doomed { targets, .. } = &mut read.goal {
                    let block = read.current.block;
                    targets.push(Target { block, len });
                }
            }
            Verdict::Other => {}
            Verdict::NoRange(error) => {
                read.rest.clear();
                read.error = Some(error);
            }
            Verdict::Bad(finding, error) => {
                self.find(finding, out);
                read.error = Some(error);
                if let Goal::Doomed { unverified, .. } = &mut read.goal {
                    *unverified = true;
                }
            }
            Verdict::More { from, len } => match mem.alloc(len as usize) {
                Some(buf) => {
                    self.read_span(id, &mut read, from, len, buf, out);
                    self.reads.insert(id, read);
                    return;
                }
                None => {
                    read.rest.clear();
                    read.error = Some(self.no_buffer());
                }
            },
        }
        if read.rest.is_empty() && read.moved && matches!(read.goal, Goal::Range { .. }) {
            // It was copied elsewhere since the index was asked, or deleted.
            read.moved = false;
            read.rest = self.index.candidates(read.hash).collect();
        }
        if let Some(next) = read.rest.pop() {
            read.current = next;
            if let Some(mut read) = self.read_candidate(id, read, mem, out) {
                read.error = Some(self.no_buffer());
                self.give_up(read, mem, out);
            }
            return;
        }
        self.give_up(read, mem, out);
    }

    /// No candidate is left.
    fn give_up(&mut self, read: Read<M::Buf>, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        let shard = read.shard;
        match read.goal {
            Goal::Range { op, .. } => {
                let error = read.error.unwrap_or_else(|| self.absent(shard));
                out.push(Action::Done {
                    op,
                    result: Err(error),
                });
            }
            // Not there, or not whole: it is written, be it for the second time.
            Goal::Stored { item, .. } => {
                if let Some(error @ EngineError::Busy { .. }) = read.error {
                    // It may well be there. What was not looked at is no reason to write it.
                    return self.refuse(What::Item(item), &error, mem, out);
                }
                self.streams[StreamNo::Data as usize].queue.push_back(item);
            }
            Goal::Doomed {
                targets,
                unverified,
            } => {
                if let Some(error @ EngineError::Busy { .. }) = read.error {
                    for op in self.deleting.remove(&shard).unwrap_or_default() {
                        out.push(Action::Done {
                            op,
                            result: Err(error.clone()),
                        });
                    }
                } else if targets.is_empty() && !unverified && self.blind.is_none() {
                    for op in self.deleting.remove(&shard).unwrap_or_default() {
                        out.push(Action::Done {
                            op,
                            result: Ok(Output::Durable),
                        });
                    }
                } else {
                    // A place that cannot be read now may hold another record of it, be it found here or not.
                    let unseen = targets.is_empty() || !mutant!(ForgetUnseen);
                    let hold = unverified || (unseen && self.blind.is_some());
                    let item = Item::Tombstone {
                        shard,
                        targets,
                        hold,
                        shadow: unverified,
                        carried: false,
                    };
                    self.streams[StreamNo::Data as usize].queue.push_back(item);
                }
            }
        }
    }

    /// A shard that is being written is there already, whole.
    fn found_stored(
        &mut self,
        read: Read<M::Buf>,
        header: &RecordHeader,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Goal::Stored {
            item:
                Item::Shard {
                    payload_len,
                    payload_crc,
                    ..
                },
        } = read.goal
        else {
            return;
        };
        let (device, shard) = (self.device, read.shard);
        if header.payload_crc == payload_crc && header.payload_len == payload_len {
            return self.written(shard, mem, out);
        }
        let Some(writing) = self.writing.remove(&shard) else {
            return;
        };
        let stored = header.payload_crc;
        for op in writing.ops {
            let error = EngineError::Exists {
                device,
                shard,
                stored,
                got: payload_crc,
            };
            out.push(Action::Done {
                op,
                result: Err(error),
            });
        }
        for op in writing.deletes {
            self.delete_shard(op, shard, mem, out);
        }
    }

    /// Looks at what was read of a candidate.
    pub(crate) fn judge(&self, read: &mut Read<M::Buf>) -> Verdict<M::Buf> {
        let device = self.device;
        let (address, reach) = self.reach(read.current);
        let shard = Some(read.shard);
        let finding = |kind, offset, len| Finding {
            kind,
            device,
            offset,
            len,
            shard,
            journal: None,
        };
        let life = |no| self.extents.get(no).incarnation;
        let gone = !self.index.contains(read.hash, read.current.block)
            || self.geometry.extent_of(address).map(life) != read.life;
        read.moved |= gone;
        for span in &read.spans {
            if let SpanState::Failed(failure) = span.state {
                if gone {
                    return Verdict::Other;
                }
                let (offset, len) = (address + span.from, span.len);
                let error = EngineError::Unreadable {
                    device,
                    offset,
                    len,
                    failure,
                };
                return Verdict::Bad(finding(FindingKind::Unreadable, offset, len), error);
            }
        }
        let corrupt = |kind, offset, len| {
            if gone {
                return Verdict::Other;
            }
            let finding = finding(kind, offset, len);
            Verdict::Bad(finding.clone(), EngineError::Corrupt { finding })
        };
        let Some(no) = self.geometry.extent_of(address) else {
            return Verdict::Other;
        };
        let incarnation = Some(self.extents.get(no).incarnation);
        let place = Place {
            device,
            extent: no,
            incarnation,
            address,
        };
        let Some(Span {
            state: SpanState::Got(head),
            len: head_len,
            ..
        }) = read.spans.first()
        else {
            return Verdict::Other;
        };
        let head = &head[..*head_len as usize];
        let block_size = self.geometry.block_size;
        let block = u64::from(block_size);
        let damage = |rot| FindingKind::diagnosed(diagnose(head, &place, block_size), rot);
        let header = match RecordHeader::decode(head, &place) {
            Ok(header) => header,
            Err(_) => return corrupt(damage(FindingKind::RecordHeader), address, block),
        };
        if header.subject != Subject::Shard(read.shard) {
            // Another shard of the same tag. (The index holds nothing but shards.)
            return Verdict::Other;
        }
        let (offset, len) = match read.goal {
            Goal::Doomed { .. } => return Verdict::Named(header.record_len(block_size)),
            Goal::Stored { .. } => (0, header.payload_len),
            Goal::Range {
                offset,
                len: u32::MAX,
                ..
            } => (offset, header.payload_len.saturating_sub(offset)),
            Goal::Range { offset, len, .. } => (offset, len),
        };
        let Some(pieces_range) = cover(header.payload_len, offset, len) else {
            let limit = u64::from(header.payload_len);
            let (offset, len) = (u64::from(offset), u64::from(len));
            return Verdict::NoRange(EngineError::BadRange {
                device,
                offset,
                len,
                limit,
            });
        };
        let room = u64::from(header_len(header.payload_len, self.geometry.block_size));
        let Ok(pieces) = header.pieces(head) else {
            return corrupt(damage(FindingKind::RecordHeader), address, room);
        };
        let (from, to) = match len {
            0 => (0, 0),
            _ => (
                room + u64::from(pieces_range.start),
                room + u64::from(pieces_range.end),
            ),
        };
        let holder = read
            .spans
            .iter()
            .position(|span| span.from <= from && to <= span.from + span.len);
        let Some(holder) = holder else {
            let to = to.next_multiple_of(block);
            if to > reach || read.spans.len() > 2 {
                return corrupt(FindingKind::WrongRecord, address, block);
            }
            return Verdict::More {
                from,
                len: to - from,
            };
        };
        let span = &read.spans[holder];
        let SpanState::Got(buf) = &span.state else {
            return Verdict::Other;
        };
        let bytes = &buf[(from - span.from) as usize..(to - span.from) as usize];
        if pieces.verify(pieces_range.start, bytes).is_err() && !mutant!(DropReadCheck) {
            // What was read beside the head does not tell what there is between the two.
            let kind = match holder {
                0 => damage(FindingKind::RecordPayload),
                _ => FindingKind::RecordPayload,
            };
            return corrupt(kind, address + from, to - from);
        }
        let start = if len == 0 {
            0
        } else {
            (room + u64::from(offset) - span.from) as usize
        };
        let SpanState::Got(buf) = read.spans.swap_remove(holder).state else {
            return Verdict::Other;
        };
        Verdict::Good {
            header,
            buf,
            start,
            len: len as usize,
        }
    }
}

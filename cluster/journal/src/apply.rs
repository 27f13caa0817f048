//! From the log into the index: in order, up to what is committed. And reading the log back.
//!
//! Invariants:
//! - entries are applied once each, in order, and never beyond `committed` once replay is over;
//! - one read of the log is under way for applying, at most one for each follower that is fed, and
//!   a bounded number for the questions of each peer;
//! - what a read gives is used only if it is the entry that the log says: number, term, checksum.
//!   If it is not, the entry is fetched from a peer; it is never passed over.

use ashlar_cluster_index::{Change, Object};
use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::journal::Entry;
use ashlar_layout::manifest::{Body, Manifest, Op, Then};
use ashlar_layout::message::{ChainBody, ErrorCode, Reply};
use ashlar_layout::root::InlinePlace;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::{self, Decoded, Piece};
use crate::mutants::mutant;
use crate::pending::{Displaced, Proposal, Refusal};
use crate::recall;
use crate::replica::{Purpose, Read, Replica, Role};
use crate::versions::{self, Made};

impl Replica {
    /// Applies what is committed and durable here, and tells those who wait for it. What is not durable here
    /// yet is not applied: the index would name a place where nothing may be.
    pub(crate) fn apply(&mut self, now: Instant, out: &mut Vec<Action>) {
        while self.may_apply() {
            let next = Seq(self.applied.0 + 1);
            if let Some(proposal) = self.head.pending.pop(next) {
                self.apply_proposal(proposal, out);
                continue;
            }
            match self.log.recent(next).map(entry::decode) {
                Some(Ok(decoded)) if self.holds_up(&decoded.op) => break,
                Some(Ok(decoded)) => self.apply_one(next, decoded),
                Some(Err(error)) => return self.not_understood(&error.to_string(), out),
                None => return self.read_to_apply(next, out),
            }
        }
        while let Some((reply_to, refusal)) = self.head.pending.pop_deferred(self.applied) {
            // A refusal tells of the state, as a read does.
            let refusal = self.check_lease(now).err().unwrap_or(refusal);
            out.push(Action::Reply {
                reply_to,
                reply: Reply::Error(refusal.into()),
            });
        }
        if self.role == Role::Head
            && !self.head.serving
            && self.committed >= self.head.term_start
            && (self.applied == self.committed || self.is_closed())
        {
            self.head.serving = true;
        }
    }

    /// Whether there is something to apply, and the index takes it.
    fn may_apply(&self) -> bool {
        let ready = self.committed.min(self.log.durable());
        let waits = self.is_closed() || self.bears();
        self.applied < ready && self.stopped.is_none() && !waits && self.index.has_room()
    }

    /// Whether an event alone would get it on: it waited for a child to be taken from its index.
    pub(crate) fn may_apply_more(&self) -> bool {
        self.splitting.as_ref().is_some_and(|it| !it.holds_up) && self.may_apply()
    }

    fn apply_proposal(&mut self, proposal: Proposal, out: &mut Vec<Action>) {
        let Proposal {
            seq,
            decoded,
            waiters,
            displaced,
            ..
        } = proposal;
        let displaced = match displaced {
            Displaced::Known(displaced) => displaced,
            Displaced::Asked(question) => {
                self.owe(question, seq, decoded.op.clone(), waiters);
                return self.apply_one(seq, decoded);
            }
        };
        self.apply_one(seq, decoded);
        committed(seq, displaced, waiters, out);
    }

    fn apply_one(&mut self, seq: Seq, decoded: Decoded) {
        let Decoded {
            client,
            request,
            time_ms,
            op,
            inline,
        } = decoded;
        if mutant!(self, WitnessAfterReply) {
            self.witness.raise(&entry::Piece {
                seq,
                term: self.term,
                prev_term: None,
                mark: entry::Mark::of(&op),
                bytes: Bytes::new(),
            });
        }
        match &op {
            Op::TermStart | Op::Chain { .. } => {}
            Op::Split { child, bucket, key } => self.split_off(seq, *child, (bucket, key)),
            Op::Close { into } => self.close(seq, *into),
            _ => self.dedup.done(client, request, seq),
        }
        self.applied = seq;
        self.unwritten += self.log.slot(seq).map_or(0, |slot| u64::from(slot.len));
        let change = self.change(seq, time_ms, op, inline);
        let taken = self.index.apply(seq, change);
        debug_assert!(taken.is_ok(), "it had room: {taken:?}");
        self.mark(seq);
    }

    /// What an entry does to the index.
    fn change(&self, seq: Seq, time_ms: u64, op: Op, inline: Bytes) -> Change {
        match op {
            Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. } => {
                Change::Nothing
            }
            Op::CreateBucket { bucket } => Change::PutBucket {
                bucket,
                created_ms: time_ms,
            },
            Op::DeleteBucket { bucket } => Change::DropBucket { bucket },
            Op::Delete { bucket, key } => Change::Delete { bucket, key },
            Op::Put {
                bucket,
                key,
                manifest,
            } => Change::Put {
                bucket,
                key,
                object: self.object(seq, time_ms, manifest, inline),
            },
            Op::Rename {
                bucket,
                key,
                source,
                modified_ms,
                manifest,
                ..
            } => {
                let object = self.object(seq, modified_ms, manifest, inline);
                versions::rename_change(bucket, (source, key), object)
            }
            Op::Relocate {
                bucket,
                key,
                tag: None,
                modified_ms,
                manifest,
                ..
            } => Change::Put {
                bucket,
                key,
                object: self.object(seq, modified_ms, manifest, inline),
            },
            Op::Relocate {
                bucket,
                key,
                tag: Some(tag),
                current,
                modified_ms,
                manifest,
                ..
            }
            | Op::PutVersion {
                bucket,
                key,
                tag,
                current,
                modified_ms,
                manifest,
            }
            | Op::LockVersion {
                bucket,
                key,
                tag,
                current,
                modified_ms,
                manifest,
                ..
            } => {
                let made_ms = if modified_ms == 0 {
                    time_ms
                } else {
                    modified_ms
                };
                let object = self.object(seq, made_ms, manifest, inline);
                let made = Made {
                    bucket,
                    key,
                    tag,
                    current,
                    object,
                };
                made.change(seq)
            }
            Op::DropVersion {
                bucket,
                key,
                id,
                then,
                ..
            } => {
                let current = then != Then::Same;
                let next = match then {
                    Then::Version {
                        tag,
                        modified_ms,
                        manifest,
                        ..
                    } => Some(Object {
                        tag: Some(tag),
                        ..self.object(seq, modified_ms, manifest, inline)
                    }),
                    Then::Same | Then::Nothing => None,
                };
                versions::drop_change((bucket, key, id), current, next)
            }
        }
    }

    /// An object that came with entry `seq`.
    fn object(&self, seq: Seq, modified_ms: u64, manifest: Manifest, inline: Bytes) -> Object {
        let embeds = manifest.size <= self.config.limits.embed as u64;
        let is_inline = manifest.body == Body::Inline;
        let payload = Some(inline).filter(|_| is_inline && embeds);
        let slot = self.log.slot(seq).filter(|_| is_inline && !embeds);
        let place = slot.map(|slot| InlinePlace {
            term: slot.term,
            at: slot.at,
            len: slot.len,
        });
        Object {
            modified_ms,
            manifest,
            tag: None,
            place,
            payload: payload.unwrap_or_default(),
        }
    }

    /// The entry is whole, but this program cannot read it: going on would make another state of
    /// the same log.
    fn not_understood(&mut self, error: &str, out: &mut Vec<Action>) {
        let detail = format!("replica {} stopped: {error}", self.config.me);
        self.stop(Refusal::new(ErrorCode::Internal, detail), out);
    }

    fn read_to_apply(&mut self, next: Seq, out: &mut Vec<Action>) {
        if self.applying.is_some() || self.repairs.contains_key(&next) {
            return;
        }
        // None if it is a hole, though committed: a follower's, which the head will fill.
        self.applying = self.read_log(Purpose::Apply, next, self.committed, out);
    }

    /// Reads entries from the device; `None` if the first is not there.
    pub(crate) fn read_log(
        &mut self,
        purpose: Purpose,
        first: Seq,
        last: Seq,
        out: &mut Vec<Action>,
    ) -> Option<u64> {
        let run = self.log.run(first, last, self.config.limits.batch_bytes)?;
        let token = self.token();
        self.reads.insert(
            token,
            Read {
                purpose,
                first: run.first,
                last: run.last,
                term: None,
            },
        );
        out.push(Action::ReadLog {
            token,
            at: run.at,
            len: run.len,
        });
        Some(token)
    }

    /// Reads the entry of an inline object from where the index says that it is.
    pub(crate) fn read_place(
        &mut self,
        purpose: Purpose,
        version: Seq,
        place: InlinePlace,
        out: &mut Vec<Action>,
    ) {
        let token = self.token();
        self.reads.insert(
            token,
            Read {
                purpose,
                first: version,
                last: version,
                term: Some(place.term),
            },
        );
        out.push(Action::ReadLog {
            token,
            at: place.at,
            len: place.len,
        });
    }

    pub(crate) fn on_log_read(
        &mut self,
        now: Instant,
        token: u64,
        bytes: Option<Bytes>,
        out: &mut Vec<Action>,
    ) {
        let Some(read) = self.reads.remove(&token) else {
            return;
        };
        let pieces = self.verified_pieces(&read, bytes);
        let lost = pieces.is_empty() && self.log.slot(read.first).is_some() && read.term.is_none();
        match read.purpose {
            Purpose::Apply => {
                self.applying = None;
                for piece in pieces {
                    // Truncated while it was read, or more than the index takes now.
                    if piece.seq.0 != self.applied.0 + 1 || !self.may_apply() {
                        continue;
                    }
                    match entry::decode(&piece.bytes) {
                        Ok(decoded) if self.holds_up(&decoded.op) => break,
                        Ok(decoded) => self.apply_read(piece.seq, decoded, out),
                        Err(error) => return self.not_understood(&error.to_string(), out),
                    }
                }
            }
            Purpose::Feed(peer) => {
                let waited = self.fed_read(peer, token);
                if waited {
                    self.send_read(now, peer, &pieces, out);
                }
            }
            Purpose::Serve(peer) => {
                if self.serves.get(&(peer, read.first)) == Some(&token) {
                    self.serves.remove(&(peer, read.first));
                    self.send_entries(peer, read.first, &pieces, out);
                }
            }
            Purpose::Lesson { peer, lesson, item } => {
                let inline = pieces.first().and_then(inline_of);
                self.lesson_read(now, peer, (lesson, item), inline, out);
            }
            Purpose::Recall { peer, name } => {
                let decoded = pieces.first().and_then(|it| entry::decode(&it.bytes).ok());
                let inline = decoded.and_then(|it| recall::inline_for(it, &name));
                self.recalled(peer, name, read.first, inline, out);
            }
        }
        if lost {
            self.repair(now, read.first, out);
        }
    }

    /// As `apply`, for an entry that was read back: at a head nobody waits for those.
    pub(crate) fn apply_read(&mut self, seq: Seq, decoded: Decoded, out: &mut Vec<Action>) {
        match self.head.pending.pop(seq) {
            Some(proposal) => self.apply_proposal(proposal, out),
            None => self.apply_one(seq, decoded),
        }
    }

    /// What was read, as far as it is what the log says.
    fn verified_pieces(&self, read: &Read, bytes: Option<Bytes>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let _damaged_behind =
            entry::split(&bytes.unwrap_or_default(), self.config.reads, &mut pieces);
        let good = pieces
            .iter()
            .zip(read.first.0..=read.last.0)
            .take_while(|(piece, seq)| {
                let term = read.term.or_else(|| self.log.term(piece.seq));
                piece.seq.0 == *seq && term == Some(piece.term)
            })
            .count();
        pieces.truncate(good);
        pieces
    }

    /// Answers a `Fetch` with what is held from `first` on: as much as one message takes.
    pub(crate) fn on_fetch(
        &mut self,
        peer: DeviceNo,
        first: Seq,
        last: Seq,
        out: &mut Vec<Action>,
    ) {
        let last = last.min(self.log.last());
        let parts = self
            .log
            .recent_run(first, last, self.config.limits.batch_bytes);
        // A peer may repair several entries at once, and wants an answer for each; to the same
        // question only the latest counts.
        self.serves.remove(&(peer, first));
        if parts.is_empty() && !self.repairs.contains_key(&first) {
            let questions = (peer, Seq(0))..=(peer, Seq(u64::MAX));
            if self.serves.range(questions).count() > self.config.limits.repairs {
                // Silence, since "none" would be untrue: it will ask again.
                return;
            }
            if let Some(token) = self.read_log(Purpose::Serve(peer), first, last, out) {
                self.serves.insert((peer, first), token);
                return;
            }
        }
        let count = parts.len() as u32;
        self.send(
            peer,
            ChainBody::Entries { first, count },
            entry::join(&parts),
            out,
        );
    }

    fn send_entries(&self, peer: DeviceNo, first: Seq, pieces: &[Piece], out: &mut Vec<Action>) {
        let parts: Vec<Bytes> = pieces.iter().map(|piece| piece.bytes.clone()).collect();
        let count = parts.len() as u32;
        self.send(
            peer,
            ChainBody::Entries { first, count },
            entry::join(&parts),
            out,
        );
    }
}

fn inline_of(piece: &Piece) -> Option<Bytes> {
    let entry = Entry::decode(&piece.bytes).ok()?;
    Some(entry::inline(&entry, &piece.bytes))
}

/// Tells all that wait for an entry that it is committed.
pub(crate) fn committed(
    seq: Seq,
    displaced: Option<Manifest>,
    waiters: Vec<u64>,
    out: &mut Vec<Action>,
) {
    for (nth, reply_to) in waiters.into_iter().enumerate() {
        let displaced = displaced.clone().filter(|_| nth == 0);
        let reply = Reply::Committed { seq, displaced };
        out.push(Action::Reply { reply_to, reply });
    }
}

//! Payloads of inline objects that the device does not give back: asked of another replica, and put into the
//! index.
//!
//! Invariants:
//! - what comes is taken only if it is the payload: of the version that the index has, its length and checksum;
//! - it is asked of one peer at a time; when all were asked in vain a few times, whoever waits is told;
//! - a payload that is put into the index is lost again if the device fails before the index is written out.
//!   Then it is asked for once more.

use std::collections::BTreeSet;

use ashlar_cluster_index::{Answer, Change, IndexError, Name, Object, Output, Question};
use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::message::{ChainBody, ErrorCode};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::{self, Decoded};
use crate::indexing::Why;
use crate::pending::{Refusal, target};
use crate::replica::{Purpose, Replica};

/// How often all are asked: one that has not applied the entry yet will have it soon.
const ROUNDS: u32 = 4;

/// A payload that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Recall {
    pub(crate) version: Seq,
    /// The driver waits for it.
    asked: bool,
    peer: Option<DeviceNo>,
    since: Instant,
    tried: BTreeSet<DeviceNo>,
    rounds: u32,
}

impl Recall {
    pub(crate) fn rebase(&mut self, by: std::time::Duration) {
        self.since = self.since - by;
    }
}

impl Replica {
    pub(crate) fn on_inline_lost(
        &mut self,
        now: Instant,
        name: Name,
        version: Seq,
        out: &mut Vec<Action>,
    ) {
        let full = self.recalls.len() >= self.config.limits.recalls;
        let other = self.recalls.get(&name);
        let other = other.is_some_and(|recall| recall.version != version);
        if other || (full && !self.recalls.contains_key(&name)) {
            let detail = "too many payloads are asked of other replicas already";
            let error = Refusal::new(ErrorCode::Busy, detail);
            return restored(name, version, Err(error), out);
        }
        self.recall(now, name, version, true, out);
    }

    /// Gets a payload again: for the driver, or for a lesson.
    pub(crate) fn recall(
        &mut self,
        now: Instant,
        name: Name,
        version: Seq,
        asked: bool,
        out: &mut Vec<Action>,
    ) {
        if let Some(recall) = self.recalls.get_mut(&name) {
            recall.asked |= asked;
            return;
        }
        let recall = Recall {
            version,
            asked,
            peer: None,
            since: now,
            tried: BTreeSet::new(),
            rounds: 0,
        };
        self.recalls.insert(name.clone(), recall);
        self.recall_next(now, name, out);
    }

    /// Asks the next one.
    fn recall_next(&mut self, now: Instant, name: Name, out: &mut Vec<Action>) {
        let members = self.members_but_me().into_iter();
        let up: Vec<DeviceNo> = members.filter(|peer| self.is_up(*peer)).collect();
        let Some(recall) = self.recalls.get_mut(&name) else {
            return;
        };
        recall.since = now;
        recall.peer = up.iter().copied().find(|peer| !recall.tried.contains(peer));
        if let Some(peer) = recall.peer {
            recall.tried.insert(peer);
            let Name { bucket, key, id } = name;
            let version = recall.version;
            let body = ChainBody::Recall {
                bucket,
                key,
                id,
                version,
            };
            return self.send(peer, body, Bytes::new(), out);
        }
        recall.tried.clear();
        recall.rounds += 1;
        if recall.rounds < ROUNDS && !up.is_empty() {
            return;
        }
        let detail = format!(
            "the payload of {:?}/{:?}, version {}, cannot be read on this device, and no replica \
             that can be reached gave it",
            name.bucket, name.key, recall.version
        );
        self.end_recall(name, Err(Refusal::new(ErrorCode::Corrupt, detail)), out);
    }

    fn end_recall(&mut self, name: Name, result: Result<(), Refusal>, out: &mut Vec<Action>) {
        if let Some(recall) = self.recalls.remove(&name).filter(|recall| recall.asked) {
            restored(name, recall.version, result, out);
        }
    }

    /// A peer cannot read a payload.
    pub(crate) fn on_recall(
        &mut self,
        peer: DeviceNo,
        name: Name,
        version: Seq,
        out: &mut Vec<Action>,
    ) {
        let asked = |why: &&Why| matches!(why, Why::Recall { .. });
        let reads = self.reads.values();
        let reads = reads.filter(|read| matches!(read.purpose, Purpose::Recall { .. }));
        let busy = self.questions.values().filter(asked).count() + reads.count();
        if busy >= self.config.limits.recalls {
            // Silence: it will ask again.
            return;
        }
        if let Some(bytes) = self.log.recent(version) {
            let inline = entry::decode(bytes).ok();
            let inline = inline.and_then(|decoded| inline_for(decoded, &name));
            return self.recalled(peer, name, version, inline, out);
        }
        if self.log.slot(version).is_some() {
            let purpose = Purpose::Recall {
                peer,
                name: name.clone(),
            };
            if self.read_log(purpose, version, version, out).is_none() {
                self.recalled(peer, name, version, None, out);
            }
            return;
        }
        match self.ask_index(Question::Named(vec![name.clone()]), out) {
            Answer::Ready(result) => {
                self.recall_answered(peer, name, version, result, out);
            }
            Answer::Pending(question) => {
                let why = Why::Recall {
                    peer,
                    name,
                    version,
                };
                self.questions.insert(question, why);
            }
            Answer::Busy => {}
        }
    }

    /// The index was asked for what a peer wants.
    pub(crate) fn recall_answered(
        &mut self,
        peer: DeviceNo,
        name: Name,
        version: Seq,
        result: Result<Output, IndexError>,
        out: &mut Vec<Action>,
    ) {
        let found = match result {
            Ok(Output::Objects(found)) => found.into_iter().next().flatten(),
            _ => None,
        };
        let found = found.filter(|found| found.meta.version == version);
        match found.map(|found| (found.place, found.payload)) {
            Some((Some(place), _)) => {
                let purpose = Purpose::Recall { peer, name };
                self.read_place(purpose, version, place, out);
            }
            found => {
                let payload = found.map(|(_, payload)| payload);
                self.recalled(peer, name, version, payload, out);
            }
        }
    }

    /// Gives a peer the payload, or says that it cannot.
    pub(crate) fn recalled(
        &self,
        peer: DeviceNo,
        name: Name,
        version: Seq,
        payload: Option<Bytes>,
        out: &mut Vec<Action>,
    ) {
        let found = payload.is_some();
        let Name { bucket, key, id } = name;
        let body = ChainBody::Recalled {
            bucket,
            key,
            id,
            version,
            found,
        };
        self.send(peer, body, payload.unwrap_or_default(), out);
    }

    /// A peer answers.
    pub(crate) fn on_recalled(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        name: Name,
        version: Seq,
        payload: Option<Bytes>,
        out: &mut Vec<Action>,
    ) {
        let awaited = self.recalls.get(&name);
        let awaited = awaited.is_some_and(|it| it.peer == Some(peer) && it.version == version);
        if !awaited {
            return;
        }
        let Some(payload) = payload else {
            return self.recall_next(now, name, out);
        };
        match self.ask_index(Question::Named(vec![name.clone()]), out) {
            Answer::Ready(result) => self.put_back(name, version, payload, result, out),
            Answer::Pending(question) => {
                let why = Why::Recalled {
                    name,
                    version,
                    payload,
                    since: self.applied,
                };
                self.questions.insert(question, why);
            }
            // It is asked for again when nothing comes of it.
            Answer::Busy => {}
        }
    }

    /// Puts a payload into the index, if it is the one.
    pub(crate) fn put_back(
        &mut self,
        name: Name,
        version: Seq,
        payload: Bytes,
        result: Result<Output, IndexError>,
        out: &mut Vec<Action>,
    ) {
        let found = match result {
            Ok(Output::Objects(found)) => found.into_iter().next().flatten(),
            Ok(_) => None,
            Err(error) => {
                let refusal = self.unreadable(&error);
                return self.end_recall(name, Err(refusal), out);
            }
        };
        let Some(found) = found.filter(|found| found.meta.version == version) else {
            // It was overwritten or deleted meanwhile: whoever waits will see.
            return self.end_recall(name, Ok(()), out);
        };
        let manifest = found.meta.manifest;
        if payload.len() as u64 != manifest.size || crc32(&payload) != manifest.crc {
            // Another peer may have it right; this one is asked again after the others.
            if let Some(recall) = self.recalls.get_mut(&name) {
                recall.peer = None;
            }
            return;
        }
        let object = Object {
            modified_ms: found.meta.modified_ms,
            manifest,
            tag: found.meta.tag,
            place: None,
            payload,
        };
        let Name { bucket, key, id } = name.clone();
        let change = match id {
            None => Change::Put {
                bucket,
                key,
                object,
            },
            Some(id) => Change::PutVersion {
                bucket,
                key,
                id,
                object,
            },
        };
        let amended = self.index.amend(version, change);
        let amended = amended.map_err(|full| Refusal::new(ErrorCode::Busy, full.to_string()));
        self.end_recall(name, amended, out);
    }

    pub(crate) fn recall_deadline(&self) -> Option<Instant> {
        let since = self.recalls.values().map(|recall| recall.since);
        since.min().map(|since| since + self.config.limits.resend)
    }

    pub(crate) fn on_deadline_recall(&mut self, now: Instant, out: &mut Vec<Action>) {
        let resend = self.config.limits.resend;
        self.recall_all(now, |recall| recall.since + resend <= now, out);
    }

    pub(crate) fn recall_peer_down(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        self.recall_all(now, |recall| recall.peer == Some(peer), out);
    }

    fn recall_all(&mut self, now: Instant, which: impl Fn(&Recall) -> bool, out: &mut Vec<Action>) {
        let names = self.recalls.iter().filter(|(_, recall)| which(recall));
        let names: Vec<Name> = names.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.recall_next(now, name, out);
        }
    }
}

/// The payload of an entry, if it is one of this object.
pub(crate) fn inline_for(decoded: Decoded, name: &Name) -> Option<Bytes> {
    (target(&decoded.op) == (&name.bucket, &name.key)).then_some(decoded.inline)
}

fn restored(name: Name, version: Seq, result: Result<(), Refusal>, out: &mut Vec<Action>) {
    out.push(Action::Restored {
        name,
        version,
        result: result.map_err(Into::into),
    });
}

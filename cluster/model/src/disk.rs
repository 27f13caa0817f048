//! A replica's device: what was given to it becomes durable in that order, and a crash keeps a
//! prefix of what was under way.
//!
//! The log that a device holds is told here from its records by a rule of a few lines (the last word
//! counts, and removes what is behind it), not by the replica's own replay: what the properties are
//! judged by must not share the code under test.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use ashlar_layout::ids::{ClientId, RequestNo, Seq, Term};
use ashlar_layout::journal;
use ashlar_layout::manifest::Op;
use bytes::Bytes;

use crate::client;
use crate::hash;

/// Bytes of the device that one entry takes: entries are at places that only their numbers tell, so
/// that devices which hold the same are the same.
const PLACE: u64 = 1 << 20;

/// What the properties need of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Its place.
    pub seq: Seq,
    /// Its reign.
    pub term: Term,
    /// Who asked for it,
    pub client: ClientId,
    /// and by which request.
    pub request: RequestNo,
    /// A hash of the key that it changes; 0: none.
    pub key: u64,
    /// The members that it makes the chain: a bit each, by node; 0: it does not.
    pub chain: u8,
    /// The number of that composition.
    pub config: u64,
    /// A hash of all of its bytes.
    pub bytes: u64,
}

/// A journal record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Device byte address.
    pub at: u64,
    /// Its entries.
    pub entries: Bytes,
    /// It cannot be read any more.
    pub rotten: bool,
    /// The replica has said that it does not need it any more: it is not there when the index is lost.
    pub trimmed: bool,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Durable records, in append order.
    pub records: Vec<Record>,
    /// On their way, each with its token.
    pub under_way: VecDeque<(u64, Record)>,
    /// The durable log; what is rotten is missing.
    pub durable: Vec<Option<Mark>>,
    /// The log with what is under way.
    pub held: Vec<Option<Mark>>,
    /// The newest promise that is durable.
    pub promised: Term,
    /// Its index was lost.
    pub lost: bool,
}

/// The marks of a record's entries; what cannot be read ends it.
pub fn marks(entries: &Bytes) -> Vec<Mark> {
    journal::entries(entries)
        .map_while(Result::ok)
        .map(|entry| {
            let (chain, config) = match entry.op() {
                Ok(Op::Chain { members, config }) => (client::bits(&members), config),
                _ => (0, 0),
            };
            Mark {
                seq: entry.header.seq,
                term: entry.header.term,
                client: entry.header.client,
                request: entry.header.request,
                key: match entry.op() {
                    Ok(Op::Put { key, .. }) => hash::of(key.as_str()),
                    _ => 0,
                },
                chain,
                config,
                bytes: hash::of(entry.bytes),
            }
        })
        .collect()
}

/// Puts an entry at its place: what it contradicts goes, with all behind it. What went.
fn put(log: &mut Vec<Option<Mark>>, mark: Mark) -> Vec<Option<Mark>> {
    let Some(index) = mark.seq.0.checked_sub(1).map(|index| index as usize) else {
        return Vec::new();
    };
    let held = log.get(index).copied();
    match held {
        None => log.resize(index, None),
        Some(None) => {
            log[index] = Some(mark);
            return Vec::new();
        }
        Some(Some(held)) if held.term == mark.term => return Vec::new(),
        Some(Some(_)) => {}
    }
    let gone = log.split_off(index);
    log.push(Some(mark));
    gone
}

/// The entry with this number.
pub fn at(log: &[Option<Mark>], seq: Seq) -> Option<Mark> {
    let index = usize::try_from(seq.0.checked_sub(1)?).ok()?;
    log.get(index).copied().flatten()
}

impl Hash for Disk {
    /// The rest follows from these.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.records.hash(state);
        self.under_way.hash(state);
        self.lost.hash(state);
    }
}

impl Disk {
    /// Whether it holds another entry of that number and reign.
    pub fn contradicts(&self, mark: &Mark) -> bool {
        let mut held = [&self.durable, &self.held]
            .into_iter()
            .filter_map(|log| at(log, mark.seq));
        held.any(|held| held.term == mark.term && held.bytes != mark.bytes)
    }

    /// Takes a record; which entries of the log it removes.
    pub fn write(&mut self, token: u64, first: Seq, entries: Bytes) -> Vec<Mark> {
        let mut gone = Vec::new();
        for mark in marks(&entries) {
            gone.extend(put(&mut self.held, mark).into_iter().flatten());
        }
        let at = (first.0 + 1) * PLACE;
        let record = Record {
            at,
            entries,
            rotten: false,
            trimmed: false,
        };
        self.under_way.push_back((token, record));
        gone
    }

    /// The oldest record under way becomes durable: its token and address, and the record's number.
    pub fn complete(&mut self) -> Option<(u64, u64, u64)> {
        let (token, record) = self.under_way.pop_front()?;
        let at = record.at;
        self.settle(&record);
        self.records.push(record);
        Some((token, at, self.records.len() as u64))
    }

    /// What a durable record says.
    fn settle(&mut self, record: &Record) {
        for mark in marks(&record.entries) {
            if mark.seq.0 == 0 {
                self.promised = self.promised.max(mark.term);
            }
            put(&mut self.durable, mark);
        }
    }

    /// The last durable record cannot be read any more, if it holds part of the log. Whether it does.
    pub fn rot(&mut self) -> bool {
        let Some(last) = self.records.last_mut() else {
            return false;
        };
        if last.rotten || last.at < 2 * PLACE {
            return false;
        }
        last.rotten = true;
        self.settle_again();
        true
    }

    /// What is durable, told anew from what can be read.
    fn settle_again(&mut self) {
        self.durable.clear();
        self.promised = Term(0);
        let records = std::mem::take(&mut self.records);
        let gone = |record: &&Record| record.rotten || (self.lost && record.trimmed);
        let left: Vec<&Record> = records.iter().filter(|record| !gone(record)).collect();
        for record in left {
            self.settle(record);
        }
        self.records = records;
        self.held = self.durable.clone();
    }

    /// Records up to this number are not needed any more, if all that they hold is this old.
    pub fn trim(&mut self, through: Seq, position: u64) {
        for (_, record) in (1..=position).zip(&mut self.records) {
            let last = marks(&record.entries).last().map(|mark| mark.seq);
            record.trimmed |= last.is_none_or(|last| last <= through);
        }
    }

    /// The index is lost, and with it what it had made dispensable.
    pub fn lose(&mut self) {
        self.lost = true;
        self.settle_again();
    }

    /// Power is lost: of what is under way the first `keep` records are there afterwards.
    pub fn crash(&mut self, keep: usize) {
        for _ in 0..keep {
            self.complete();
        }
        self.under_way.clear();
        self.held = self.durable.clone();
    }

    /// Bytes of the newest record that holds this place.
    pub fn read(&self, at: u64, len: u32) -> Option<Bytes> {
        self.records.iter().rev().find_map(|record| {
            let from = usize::try_from(at.checked_sub(record.at)?).ok()?;
            let to = from.checked_add(len as usize)?;
            (!record.rotten && to <= record.entries.len()).then(|| record.entries.slice(from..to))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, term: u64) -> Bytes {
        let mut out = Vec::new();
        let (seq, term) = (Seq(seq), Term(term));
        let none = (ClientId(0), RequestNo(0));
        journal::encode_entry(&mut out, seq, term, none.0, none.1, 0, &Op::TermStart, &[]).unwrap();
        Bytes::from(out)
    }

    fn terms(log: &[Option<Mark>]) -> Vec<u64> {
        let term = |mark: &Option<Mark>| mark.map_or(0, |mark| mark.term.0);
        log.iter().map(term).collect()
    }

    #[test]
    fn a_crash_keeps_a_prefix() {
        let mut disk = Disk::default();
        for (token, (seq, term)) in [(1, 1), (2, 1), (0, 5), (3, 1)].into_iter().enumerate() {
            disk.write(token as u64, Seq(seq), entry(seq, term));
        }
        assert_eq!(terms(&disk.held), [1, 1, 1]);
        assert_eq!(disk.complete().map(|done| done.0), Some(0));
        assert_eq!(terms(&disk.durable), [1]);
        let mut more = disk.clone();
        more.crash(2);
        assert_eq!((terms(&more.held), more.promised), (vec![1, 1], Term(5)));
        disk.crash(0);
        assert_eq!((terms(&disk.held), disk.promised), (vec![1], Term(0)));
        assert!(disk.under_way.is_empty());
    }

    #[test]
    fn the_last_word_removes_what_it_contradicts() {
        let mut disk = Disk::default();
        let words = [(1, 1), (2, 3), (3, 3), (2, 2), (3, 4), (2, 2)];
        let removes: Vec<bool> = words
            .into_iter()
            .map(|(seq, term)| !disk.write(0, Seq(seq), entry(seq, term)).is_empty())
            .collect();
        assert_eq!(removes, [false, false, false, true, false, false]);
        while disk.complete().is_some() {}
        assert_eq!(terms(&disk.durable), [1, 2, 4]);
    }

    #[test]
    fn rot_leaves_a_hole() {
        let mut disk = Disk::default();
        for seq in 1..=2 {
            disk.write(seq, Seq(seq), entry(seq, 1));
            disk.complete();
        }
        assert!(disk.rot());
        assert!(!disk.rot());
        assert_eq!(terms(&disk.durable), [1]);
        disk.write(3, Seq(3), entry(3, 1));
        disk.complete();
        assert_eq!(terms(&disk.durable), [1, 0, 1]);
        disk.write(4, Seq(2), entry(2, 1));
        assert_eq!(terms(&disk.held), [1, 1, 1]);
    }

    #[test]
    fn reads_give_the_newest() {
        let mut disk = Disk::default();
        disk.write(0, Seq(1), entry(1, 1));
        disk.write(0, Seq(1), entry(1, 2));
        disk.complete();
        let (_, at, position) = disk.complete().unwrap();
        assert_eq!(position, 2);
        let len = entry(1, 2).len() as u32;
        assert_eq!(disk.read(at, len), Some(entry(1, 2)));
        assert_eq!(disk.read(at, len + 1), None);
    }
}

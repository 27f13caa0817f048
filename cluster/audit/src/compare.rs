//! The replicas of a partition, compared with each other: one pass over what their indexes say.
//!
//! A stretch of some entries after the other is asked of all of them, as it was behind one and the same entry of the
//! journal, which is about to come when it is chosen. Where they do not say the same, the stretch is halved until one
//! entry is left, and that is looked at once more, behind a later entry.
//!
//! Invariants:
//! - who does not answer, cannot say, or is an older program, is unknown: that is never a finding. With fewer than two
//!   that answer nothing is compared;
//! - nobody is believed more than others, the head not either: a replica is named if more than half of those that
//!   answered say the same, and it does not. If no more than half do, all are named, and none is right;
//! - a finding was seen twice, behind two entries of the journal;
//! - it ends: each step goes forward, halves what is left, or uses up one of a bounded number of tries.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::digest::{Digest, DigestEntry};
use ashlar_layout::ids::{DeviceNo, Seq};

/// Entries of a stretch.
pub const STRETCH: u32 = 1024;
/// How often one stretch is asked for behind another entry, because somebody was not there yet or past it.
const TRIES: u32 = 12;
/// How often one difference is looked for that is not there any more when it is looked at again.
const ROUNDS: u32 = 3;
/// How far ahead of what is committed the entry is at the most.
const AHEAD_MAX: u64 = 1 << 16;

/// What is to be asked of all replicas at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Behind which entry of the journal,
    pub at: Seq,
    /// behind which key of the map,
    pub after: Vec<u8>,
    /// and for how many entries of the map at the most.
    pub entries: u32,
    /// Whom.
    pub devices: BTreeSet<DeviceNo>,
}

/// What a replica said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// This.
    Digest(Digest),
    /// It is past the entry, and did not keep that state.
    Past,
    /// It has not come to it.
    Behind,
    /// It does not say, for whatever reason.
    Unknown,
}

/// Replicas that do not have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Behind which entry of the journal.
    pub at: Seq,
    /// The first key, in the order of the map, of which they do not say the same.
    pub key: DigestEntry,
    /// What each has of it; none: nothing.
    pub has: BTreeMap<DeviceNo, Option<DigestEntry>>,
    /// Those that say the same, if they are more than half of those that said anything,
    pub agree: BTreeSet<DeviceNo>,
    /// and the others.
    pub divergent: BTreeSet<DeviceNo>,
}

/// What is next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next question, at once.
    On,
    /// The next question, after a pause: somebody was not as far as was expected.
    Again,
    /// This was found; then as before.
    Found(Box<Divergence>),
    /// The pass is over.
    Over,
}

/// What a pass came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Entries that two replicas at the least said the same of.
    pub same: u64,
    /// Stretches of which not all replicas said something,
    pub partly: u64,
    /// and those of which fewer than two did: nothing is known of these.
    pub unknown: u64,
    /// Differences that were not there any more when they were looked at again.
    pub vanished: u64,
    /// Whether it came to the end.
    pub whole: bool,
}

/// What is looked for behind `after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    /// Whether a stretch is the same.
    Stretch,
    /// Where in the next so many entries the first difference is.
    Narrows(u32),
    /// Whether the first entry is another one still.
    Confirms,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Comparison {
    devices: BTreeSet<DeviceNo>,
    after: Vec<u8>,
    looks: Looks,
    at: Option<Seq>,
    ahead: u64,
    tries: u32,
    patience: u32,
    rounds: u32,
    compared: Compared,
    over: bool,
}

impl Comparison {
    /// Of the replicas on these devices.
    pub fn new(devices: BTreeSet<DeviceNo>) -> Comparison {
        let over = devices.len() < 2;
        Comparison {
            devices,
            after: Vec::new(),
            looks: Looks::Stretch,
            at: None,
            ahead: 0,
            tries: 0,
            patience: TRIES,
            rounds: 0,
            compared: Compared::default(),
            over,
        }
    }

    /// What it has come to.
    pub fn compared(&self) -> Compared {
        self.compared
    }

    /// Whether the next question is behind an entry that is still to be chosen.
    pub fn wants_entry(&self) -> bool {
        self.at.is_none()
    }

    /// The next question, when so much is committed; none if the pass is over.
    pub fn question(&mut self, committed: Seq) -> Option<Question> {
        if self.over {
            return None;
        }
        let ahead = Seq(committed.0.saturating_add(self.ahead));
        let entries = match self.looks {
            Looks::Stretch => STRETCH,
            Looks::Narrows(left) => left.div_ceil(2).max(1),
            Looks::Confirms => 1,
        };
        Some(Question {
            at: *self.at.get_or_insert(ahead),
            after: self.after.clone(),
            entries,
            devices: self.devices.clone(),
        })
    }

    /// What they said to it.
    pub fn answered(&mut self, said: &BTreeMap<DeviceNo, Said>) -> Next {
        if self.over {
            return Next::Over;
        }
        let all = self.devices.iter();
        let of = |device| said.get(device).unwrap_or(&Said::Unknown);
        let known: BTreeMap<DeviceNo, &Digest> = all
            .clone()
            .filter_map(|device| match of(device) {
                Said::Digest(digest) => Some((*device, digest)),
                _ => None,
            })
            .collect();
        let (mut past, mut behind) = (false, false);
        for said in all.map(of) {
            past |= *said == Said::Past;
            behind |= *said == Said::Behind;
        }
        let timely = !past && !behind;
        let enough = known.len() >= 2;
        if !timely && self.tries < self.patience {
            self.ahead = match past {
                true => (2 * self.ahead).clamp(1, AHEAD_MAX),
                // Nothing comes, or not so much.
                false => self.ahead / 8,
            };
            return self.again();
        }
        // Whoever lags is not waited for as long with each stretch.
        self.patience = if timely { TRIES } else { 1 };
        if !enough {
            return self.pass_over(known.values().next().copied());
        }
        let mut digests = known.values();
        let mut first = digests.next().copied().cloned().unwrap_or_default();
        // Whether there is more is no part of the stretch: the next one tells.
        first.more = known.values().any(|digest| digest.more);
        let alike = |other: &Digest| (other.sum, other.entries) == (first.sum, first.entries);
        match (digests.all(|other| alike(other)), self.looks) {
            (true, _) => self.same(&first, known.len()),
            (false, Looks::Stretch) => {
                let most = known.values().map(|digest| digest.entries).max();
                self.looks = Looks::Narrows(most.unwrap_or(STRETCH).max(1));
                Next::On
            }
            (false, Looks::Narrows(left)) if left > 1 => {
                self.looks = Looks::Narrows(left.div_ceil(2));
                Next::On
            }
            (false, Looks::Narrows(_)) => {
                (self.looks, self.at, self.tries) = (Looks::Confirms, None, 0);
                Next::Again
            }
            (false, Looks::Confirms) => self.found(&known),
        }
    }

    /// The same, behind another entry.
    fn again(&mut self) -> Next {
        (self.at, self.tries) = (None, self.tries + 1);
        // What is behind another entry may differ elsewhere.
        if let Looks::Narrows(_) = self.looks {
            self.looks = Looks::Stretch;
        }
        Next::Again
    }

    /// Too few say anything: goes on where that one says that the stretch ends.
    fn pass_over(&mut self, only: Option<&Digest>) -> Next {
        self.compared.unknown += 1;
        let Some(digest) = only else {
            return self.end(false);
        };
        let digest = digest.clone();
        self.behind(&digest, false)
    }

    fn same(&mut self, digest: &Digest, known: usize) -> Next {
        self.compared.partly += u64::from(known < self.devices.len());
        self.compared.same += u64::from(digest.entries);
        match self.looks {
            Looks::Stretch => self.behind(digest, true),
            Looks::Narrows(left) if left > digest.entries && digest.more => {
                self.after.clone_from(&digest.last);
                self.looks = Looks::Narrows(left - digest.entries);
                Next::On
            }
            // It was there, and is not any more: somebody wrote meanwhile, or the answer was wrong.
            Looks::Narrows(_) | Looks::Confirms => {
                self.compared.vanished += 1;
                self.rounds += 1;
                (self.looks, self.at) = (Looks::Stretch, None);
                if self.rounds < ROUNDS {
                    return Next::Again;
                }
                self.rounds = 0;
                self.behind(digest, true)
            }
        }
    }

    /// Goes on with the next stretch.
    fn behind(&mut self, digest: &Digest, known: bool) -> Next {
        (self.looks, self.at, self.tries) = (Looks::Stretch, None, 0);
        if known {
            self.rounds = 0;
        }
        if !digest.more || digest.last <= self.after {
            let whole = !digest.more && self.compared.unknown == 0;
            return self.end(whole);
        }
        self.after.clone_from(&digest.last);
        Next::On
    }

    fn end(&mut self, whole: bool) -> Next {
        (self.over, self.compared.whole) = (true, whole);
        Next::Over
    }

    fn found(&mut self, known: &BTreeMap<DeviceNo, &Digest>) -> Next {
        let firsts = known.values().filter_map(|digest| digest.first.as_ref());
        let Some(key) = firsts.min_by(|a, b| a.at.cmp(&b.at)).cloned() else {
            // None of them has anything there, and yet they differ: that is no answer.
            return self.pass_over(None);
        };
        let sum = |digest: &Digest| {
            let has = digest.first.as_ref().is_some_and(|it| it.at == key.at);
            has.then_some(digest.sum)
        };
        let mut groups: BTreeMap<Option<[u8; 32]>, BTreeSet<DeviceNo>> = BTreeMap::new();
        let mut has = BTreeMap::new();
        for (device, digest) in known {
            groups.entry(sum(digest)).or_default().insert(*device);
            let entry = digest.first.clone().filter(|it| it.at == key.at);
            has.insert(*device, entry);
        }
        if groups.len() < 2 {
            // They have the same of this key, and something else is behind it.
            self.looks = Looks::Stretch;
            return self.again();
        }
        let most = groups.values().find(|group| 2 * group.len() > known.len());
        let agree = most.cloned().unwrap_or_default();
        let all = known.keys().copied();
        let divergent: BTreeSet<DeviceNo> = all.filter(|it| !agree.contains(it)).collect();
        self.devices.retain(|device| !divergent.contains(device));
        let found = Divergence {
            at: self.at.unwrap_or_default(),
            key,
            has,
            agree,
            divergent,
        };
        (self.looks, self.at, self.tries) = (Looks::Stretch, None, 0);
        // Those that are left are compared on.
        self.over = self.devices.len() < 2;
        Next::Found(Box::new(found))
    }
}

//! The census of a device: which of its shards no object names.
//!
//! The device marks each shard that is asked for, or written. Passes ask for every shard of every object: once each
//! partition has had a whole one that both began and ended since, what has no mark, and stood there before, is a
//! *suspect*. What is one in two censuses, one after the other, is an orphan. The second one is for what a key hands
//! to another one (an upload to its object, a rename): passes may come by where it is not any more and where it is not
//! yet, once.
//!
//! Invariants:
//! - a census counts only if no pass of it left a shard of this device unasked or unanswered, or could not see what an
//!   object names; and if the device did not forget its marks. Otherwise it begins anew, or a later pass is waited for.
//!   A partition that is new, or has another range, needs a pass that begins after that was seen;
//! - a pass is known to have begun since by being none of those that the records knew when the marks had begun: whoever
//!   begins one records that before it reads. No clock is compared with another one;
//! - an orphan is recorded once. It leaves the record when it had a mark, or was not there, in [`AGAIN`] censuses in a
//!   row: one mark may be by chance;
//! - one thing is under way at a time, and everything is bounded: what has no room is a suspect another time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, PartitionId, ShardId};
use ashlar_layout::time::Instant;

use crate::audit::Now;
use crate::orphans::{ORPHANS_MAX, Orphan, Orphans};
use crate::record::{DAY_MS, Record};

/// In so many censuses in a row an orphan is none, until it is not called one any more.
pub const AGAIN: u32 = 3;
/// Most suspects.
pub const SUSPECTS_MAX: usize = ORPHANS_MAX;

/// A partition's range: the first bucket and key in it, and the first behind it, if there is one.
pub type Range = ((String, String), Option<(String, String)>);

/// What a record says of passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    /// When the one under way began.
    pub under_way: Option<u64>,
    /// The last one that came to its end.
    pub ended: Option<Whole>,
}

/// A pass that came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// When it began.
    pub begun_ms: u64,
    /// Whether it came by all that objects name.
    pub whole: bool,
    /// Devices of which it asked for shards in vain.
    pub missed: BTreeSet<DeviceNo>,
}

impl Passes {
    /// What a record says; none: there is none.
    pub fn of(record: Option<&Record>) -> Passes {
        let ended = record.and_then(|record| record.ended.as_ref());
        // What is made of others' records has an end of 0: it was no pass of this partition.
        let ended = ended.map(|ended| Whole {
            begun_ms: ended.pass.begun_ms,
            whole: ended.ended_ms > 0 && ended.pass.unread.is_empty(),
            missed: ended.pass.away.keys().copied().collect(),
        });
        let pass = record.and_then(|record| record.pass.as_ref());
        Passes {
            under_way: pass.map(|pass| pass.begun_ms),
            ended,
        }
    }

    fn knows(&self, begun_ms: u64) -> bool {
        let ended = self.ended.as_ref().map(|ended| ended.begun_ms);
        self.under_way == Some(begun_ms) || ended == Some(begun_ms)
    }
}

/// All partitions that there are, with their ranges, and what is known of their passes.
pub type Sight = BTreeMap<PartitionId, (Range, Passes)>;

/// What happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is to begin.
    Start,
    /// The document as it stands, if there is one.
    Loaded(Option<Box<Orphans>>),
    /// The device marks from now on, under this name.
    Begun(u64),
    /// How passes are.
    Seen(Sight),
    /// Places of shards that have no mark, in their order, and where to go on.
    Walked(Vec<u64>, Option<u64>),
    /// The device has no such marks: it was opened since.
    Forgotten,
    /// What stands at a place, and its bytes; none if nothing does, or it does not say what it is.
    Named(Option<(ShardId, u64)>),
    /// The document is durable.
    Recorded,
    /// Somebody else has written it.
    Outdated,
    /// What was asked for could not be done.
    Failed,
    /// The deadline has come.
    Deadline,
}

/// What the driver is to do. Each is answered by an event, and meanwhile there is no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the document.
    Load,
    /// Have the device forget its marks and mark anew, by chance in another way than before.
    Begin,
    /// Look how passes are.
    See,
    /// Say what has no mark, of the marks of this name, from a place on.
    Walk(u64, u64),
    /// Say what stands at a place.
    Name(u64),
    /// Write the document.
    Record(Box<Orphans>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    /// The device marks: what passes are there?
    Sight,
    /// They are waited for.
    Passes,
    Walk(u64),
    Name,
}

/// The state machine.
#[derive(Debug)]
pub struct Census {
    poll: Duration,
    /// An answer is waited for.
    asked: bool,
    stage: Stage,
    /// The name of the marks.
    salt: u64,
    /// How passes were when the device had begun to mark,
    since: Sight,
    /// and partitions that have had a whole one since.
    done: BTreeSet<PartitionId>,
    suspects: BTreeSet<u64>,
    /// Those of the census before.
    before: BTreeSet<u64>,
    /// There were more.
    more: bool,
    /// Orphans that are still there without a mark.
    still: BTreeSet<u64>,
    /// In how many censuses in a row others were not.
    none: BTreeMap<u64, u32>,
    unnamed: VecDeque<u64>,
    orphans: Orphans,
    loaded: bool,
    dirty: bool,
    until: Option<Instant>,
}

impl Census {
    /// Of a device; passes are looked at each so often.
    pub fn new(device: DeviceNo, poll: Duration) -> Census {
        Census {
            poll,
            asked: false,
            stage: Stage::Begin,
            salt: 0,
            since: Sight::new(),
            done: BTreeSet::new(),
            suspects: BTreeSet::new(),
            before: BTreeSet::new(),
            more: false,
            still: BTreeSet::new(),
            none: BTreeMap::new(),
            unnamed: VecDeque::new(),
            orphans: Orphans {
                device,
                ..Orphans::default()
            },
            loaded: false,
            dirty: false,
            until: None,
        }
    }

    /// What stands, as far as it is known.
    pub fn orphans(&self) -> &Orphans {
        &self.orphans
    }

    /// When it wants to be told that it is so late; none while something is under way.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.until.filter(|_| !self.asked)
    }

    /// Something happens.
    pub fn on_event(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        match (self.asked, event) {
            (false, Event::Start) => {}
            (false, Event::Deadline) => {
                if self.until.is_some_and(|until| until <= now.at) {
                    self.until = None;
                }
            }
            // Nothing else was asked for.
            (false, _) | (true, Event::Start | Event::Deadline) => return,
            (true, event) => {
                self.asked = false;
                self.answered(now, event);
            }
        }
        self.go_on(out);
    }

    fn answered(&mut self, now: Now, event: Event) {
        match (self.stage, event) {
            (_, Event::Loaded(found)) => {
                let device = self.orphans.device;
                self.orphans = found.map_or_else(Orphans::default, |found| *found);
                self.orphans.device = device;
                (self.loaded, self.dirty) = (true, false);
            }
            (_, Event::Recorded) => self.dirty = false,
            (_, Event::Outdated) => {
                // What this census has found is found by the next one.
                (self.loaded, self.dirty, self.stage) = (false, false, Stage::Begin);
            }
            (Stage::Begin, Event::Begun(salt)) => {
                (self.salt, self.stage) = (salt, Stage::Sight);
            }
            (Stage::Sight, Event::Seen(sight)) => {
                self.done.clear();
                (self.since, self.stage) = (sight, Stage::Passes);
                self.until = Some(now.at + self.poll);
            }
            (Stage::Passes, Event::Seen(sight)) => self.see(now, &sight),
            (Stage::Walk(_), Event::Walked(places, next)) => {
                for place in places {
                    self.suspect(place);
                }
                match next {
                    Some(next) => self.stage = Stage::Walk(next),
                    None => self.walked(),
                }
            }
            (Stage::Walk(_), Event::Forgotten) => self.stage = Stage::Begin,
            (Stage::Name, Event::Named(named)) => {
                if let (Some(place), Some((shard, bytes))) = (self.unnamed.pop_front(), named) {
                    let orphan = Orphan {
                        stripe: shard.stripe,
                        index: shard.index,
                        bytes,
                        found_ms: now.wall_ms,
                    };
                    self.orphans.take(place, orphan, now.wall_ms / DAY_MS);
                }
            }
            // It is asked for again.
            _ => self.until = Some(now.at + self.poll),
        }
        if self.stage == Stage::Name && self.unnamed.is_empty() {
            self.orphans.censuses += 1;
            self.orphans.at_ms = now.wall_ms;
            (self.dirty, self.stage) = (true, Stage::Begin);
        }
    }

    /// Passes are so now.
    fn see(&mut self, now: Now, sight: &Sight) {
        self.since.retain(|id, _| sight.contains_key(id));
        self.done.retain(|id| sight.contains_key(id));
        for (id, (range, passes)) in sight {
            if self.since.get(id).is_none_or(|(known, _)| known != range) {
                self.since.insert(*id, (range.clone(), passes.clone()));
                self.done.remove(id);
            }
            let known = self.since.get(id).map(|(_, passes)| passes);
            let counts = |ended: &&Whole| {
                let since = !known.is_some_and(|known| known.knows(ended.begun_ms));
                since && ended.whole && !ended.missed.contains(&self.orphans.device)
            };
            if passes.ended.as_ref().filter(counts).is_some() {
                self.done.insert(*id);
            }
        }
        // Of no partitions nothing follows.
        if self.done.len() < self.since.len() || self.since.is_empty() {
            self.until = Some(now.at + self.poll);
            return;
        }
        self.stage = Stage::Walk(0);
        self.suspects.clear();
        self.still.clear();
        self.more = false;
    }

    fn suspect(&mut self, place: u64) {
        if self.orphans.shards.contains_key(&place) {
            self.still.insert(place);
        } else if self.suspects.len() < SUSPECTS_MAX {
            self.suspects.insert(place);
        } else {
            self.more = true;
        }
    }

    /// The index was gone through.
    fn walked(&mut self) {
        let Census {
            orphans,
            still,
            none,
            ..
        } = self;
        let before = orphans.shards.len();
        orphans.shards.retain(|place, _| {
            if still.contains(place) {
                none.remove(place);
                return true;
            }
            let times = none.entry(*place).or_default();
            *times += 1;
            *times < AGAIN
        });
        none.retain(|place, _| orphans.shards.contains_key(place));
        orphans.cleared += (before - orphans.shards.len()) as u64;
        orphans.more = self.more;
        let again = self.suspects.intersection(&self.before);
        self.unnamed = again.copied().collect();
        self.before = std::mem::take(&mut self.suspects);
        self.stage = Stage::Name;
    }

    fn go_on(&mut self, out: &mut Vec<Action>) {
        if self.until.is_some() {
            return;
        }
        self.asked = true;
        out.push(match self.stage {
            _ if !self.loaded => Action::Load,
            _ if self.dirty => Action::Record(Box::new(self.orphans.clone())),
            Stage::Begin => Action::Begin,
            Stage::Sight | Stage::Passes => Action::See,
            Stage::Walk(from) => Action::Walk(self.salt, from),
            Stage::Name => Action::Name(self.unnamed.front().copied().unwrap_or_default()),
        });
    }
}

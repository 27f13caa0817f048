//! The auditor and repairer of one partition.
//!
//! It goes through the partition's objects in their order, a pass at a time, looks at every shard of each, and mends
//! what is bad, several stripes together. One thing is under way at a time; what it is, the driver was told by the
//! last action.
//!
//! Invariants:
//! - what was found is in the record, durably, before anything is mended: a crash between the two makes nobody count it
//!   again, or not at all;
//! - the record's place moves with what was counted up to there, in one write, and only behind objects that were looked
//!   at whole, or noted as what they were instead;
//! - whoever begins to go on from a place says so first, and records the more often the more often that has happened:
//!   so a region that crashes its reader is come through a step at a time, and what crashes it each time is passed
//!   over;
//! - what is on devices that are gone is put elsewhere, if the cluster has agreed that they are out: each stripe is
//!   looked at right before that, and it is done only if what is away is gone, and nothing bad of it is uncounted;
//! - nothing is counted of a record that somebody else has written since it was read: then it is read again.

mod changed;
mod hunt;
mod repair;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId, StripeId};
use ashlar_layout::time::Instant;

use crate::queue::{self, AWAY_MAX, Job, Outcome};
use crate::record::{Closed, DAY_MS, Ended, Item, Loss, Pass, Place, Record};
use crate::tally::{Kind, Tally};
pub use hunt::{Prey, World};

/// How far the clocks of nodes may be apart without one of them being taken to be wrong, in milliseconds.
const CLOCKS_APART_MS: u64 = 60 * 60 * 1000;

/// Stripes and objects after which is recorded, unless this place was begun from before.
const STRIDE: u64 = 256;
/// After so many beginnings that did not come far, each stripe is recorded.
const BROKEN_MAX: u32 = 8;
/// So often a place is begun from; then what comes next is passed over.
const STARTS_MAX: u32 = 8;
/// So often an object is looked at that cannot be.
const TRIES: u32 = 3;
/// The first pause after something could not be done,
const PAUSE: Duration = Duration::from_secs(1);
/// and the longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How it is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the beginning of one pass to that of the next.
    pub pass: Duration,
    /// How long is waited for devices that are away, if there is margin.
    pub wait: Duration,
    /// How long at the most what was counted is not recorded.
    pub record: Duration,
}

/// What time it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// As timers have it,
    pub at: Instant,
    /// and in milliseconds since 1970.
    pub wall_ms: u64,
}

/// A stripe that was looked at, or mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Which,
    pub stripe: StripeId,
    /// and the how many-th of its object.
    pub nth: u64,
    /// It lists stripes of the object: those come after it, unless it is lost.
    pub lists: bool,
    /// Bytes of each shard.
    pub shard_len: u64,
    /// Shards that were whole,
    pub whole: u32,
    /// of those that it takes.
    pub needed: u32,
    /// Shards that were not, on devices that answered.
    pub bad: Vec<(u16, Kind, DeviceNo)>,
    /// Shards of devices that did not.
    pub away: Vec<(u16, DeviceNo)>,
    /// Bad ones that were made again and read back.
    pub mended: Vec<u16>,
    /// Why others were not.
    pub why: String,
}

impl Looked {
    /// How many more shards it can lose now.
    pub fn margin(&self) -> i32 {
        let mended = i64::try_from(self.mended.len()).unwrap_or(i64::MAX);
        let whole = i64::from(self.whole).saturating_add(mended);
        i32::try_from(whole - i64::from(self.needed)).unwrap_or(i32::MAX)
    }

    /// Whether its bytes are gone: not even what is away could help.
    pub fn is_lost(&self) -> bool {
        (self.whole as usize) + self.away.len() < self.needed as usize
    }

    fn shards(&self) -> u64 {
        u64::from(self.whole) + (self.bad.len() + self.away.len()) as u64
    }
}

/// What happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is to begin.
    Start,
    /// The record as it stands, if there is one.
    Loaded(Option<Box<Record>>),
    /// Objects behind the place that was asked for, in order, and behind which place there are more.
    Listed(Vec<Item>, Option<Place>),
    /// A stripe of the object was looked at.
    Stripe(Looked),
    /// There are no more of them. Whether it rides in the journal.
    Over(bool),
    /// The object was removed; or it was replaced, and what it is now is not looked at.
    Changed,
    /// The object was replaced: this is what it is now, and its first stripe comes next.
    Replaced(Box<Item>),
    /// What came of the stripes of the queue that were to be mended: of each of them.
    Mended(Vec<(StripeId, Outcome)>),
    /// What was to be recorded is durable.
    Recorded,
    /// Somebody else has written the record.
    Outdated,
    /// The document of a day that is over is there.
    DayKept,
    /// What was asked for could not be done.
    Failed(String),
    /// Stripes of the object that are on devices which are gone, and the how many-th comes next, if there are more.
    Tracked(Vec<Prey>, Option<u64>),
    /// How devices are now.
    World(World),
    /// The deadline has come.
    Deadline,
}

/// What the driver is to do. Each is answered by an event, and meanwhile there is no other, but for [`Event::World`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the record.
    Load,
    /// List objects behind a place; none: from the partition's beginning on.
    List(Option<Place>),
    /// Look at the first stripe of an object behind so many.
    Look(Item, u64),
    /// Look at its next stripe.
    Next,
    /// Do something about stripes of the queue, about all at the same time if that can be: none waits for another one.
    Mend(Vec<Job>),
    /// Say which stripes of an object, from so many on, are on these devices: some of them, in their order. No shard
    /// is to be read for that but those of lists of stripes.
    Track(Item, u64, BTreeSet<DeviceNo>),
    /// Make the documents of losses, where they are not there, and then write the record.
    Record(Box<Record>, Vec<Loss>),
    /// Make the document of a day.
    KeepDay(Closed),
}

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    Loading,
    Listing,
    Looking,
    Mending,
    Recording,
    KeepingDay,
    /// What is on devices that are gone is looked for.
    Scouting,
    Tracking,
}

/// An object that is being looked at.
#[derive(Clone, Debug)]
struct Open {
    item: Item,
    /// Stripes that were looked at.
    done: u64,
    /// All of it is looked at in one go, and could be read.
    whole: bool,
    tries: u32,
    /// How often it was replaced meanwhile.
    replaced: u32,
    /// Stripes before this are counted: of one that was replaced they are gone through again.
    counted: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Audit {
    partition: PartitionId,
    node: NodeId,
    limits: Limits,
    doing: Doing,
    record: Record,
    page: VecDeque<Item>,
    more: Option<Option<Place>>,
    open: Option<Open>,
    losses: Vec<Loss>,
    /// Something is to be recorded;
    dirty: bool,
    /// it is so before anything else is done.
    must: bool,
    units: u64,
    recorded: Instant,
    /// Stripes and objects that were looked at since it was loaded.
    far: u64,
    loaded: bool,
    /// Some of what is in the queue is not recorded yet.
    fresh: bool,
    /// What is due is mended before anything else is looked at.
    draining: bool,
    /// Since when something urgent is due, and others are looked for that can be mended together with it.
    gathering: Option<Instant>,
    /// When the last look began, and whether it took so long that what is urgent does not wait for the next one.
    asked: Instant,
    slow: bool,
    /// Those that are being mended.
    mending: Vec<StripeId>,
    away: BTreeSet<DeviceNo>,
    /// How devices are, as far as it was told.
    world: Option<World>,
    /// When that was, and how devices that are away were seen so far.
    told: Option<Instant>,
    seen: BTreeMap<DeviceNo, hunt::Seen>,
    /// Objects to be gone through for what is on devices that are gone; where there are more, and the one in hand.
    prey: VecDeque<Item>,
    prey_more: Option<Option<Place>>,
    tracked: Option<(Item, u64, u32)>,
    early: bool,
    pause: Duration,
    until: Option<Instant>,
}

impl Audit {
    /// Of a partition, by a node.
    pub fn new(partition: PartitionId, node: NodeId, limits: Limits) -> Audit {
        Audit {
            partition,
            node,
            limits,
            doing: Doing::Nothing,
            record: Record::default(),
            page: VecDeque::new(),
            more: None,
            open: None,
            losses: Vec::new(),
            dirty: false,
            must: false,
            units: 0,
            recorded: Instant(0),
            far: 0,
            loaded: false,
            fresh: false,
            draining: false,
            gathering: None,
            asked: Instant(0),
            slow: false,
            mending: Vec::new(),
            away: BTreeSet::new(),
            world: None,
            told: None,
            seen: BTreeMap::new(),
            prey: VecDeque::new(),
            prey_more: None,
            tracked: None,
            early: false,
            pause: PAUSE,
            until: None,
        }
    }

    /// What it would record now.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// When it wants to be told that it is so late; none while something is under way.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.until.filter(|_| self.doing == Doing::Nothing)
    }

    /// Something happens.
    pub fn on_event(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        match (self.doing, event) {
            (_, Event::World(world)) => self.world(now, world),
            (Doing::Nothing, Event::Start) => self.load(out),
            (Doing::Nothing, Event::Deadline) => {
                if self.until.is_some_and(|until| until <= now.at) {
                    self.until = None;
                }
            }
            (Doing::Loading, Event::Loaded(record)) => self.loaded(now, record),
            (Doing::Listing, Event::Listed(items, more)) => self.listed(items, more),
            (Doing::Looking, Event::Stripe(looked)) => self.stripe(now, &looked),
            (Doing::Looking, Event::Over(inline)) => self.over(inline),
            (Doing::Looking, Event::Changed) => {
                self.record.today.tally.changed += 1;
                self.behind_open();
            }
            (Doing::Looking, Event::Replaced(item)) => self.replaced(*item),
            (Doing::Mending, Event::Mended(outcomes)) => {
                self.all_mended(now, outcomes, "it was not said what came of it");
            }
            (Doing::Scouting, Event::Listed(items, more)) => {
                (self.doing, self.pause) = (Doing::Nothing, PAUSE);
                (self.prey, self.prey_more) = (items.into(), more.map(Some));
            }
            (Doing::Tracking, Event::Tracked(prey, next)) => self.take_prey(now, prey, next),
            (Doing::Tracking, Event::Changed) => self.behind_prey(),
            (Doing::Recording, Event::Recorded) => {
                self.doing = Doing::Nothing;
                (self.dirty, self.must, self.fresh, self.units) = (false, false, false, 0);
                (self.recorded, self.pause) = (now.at, PAUSE);
                self.losses.clear();
            }
            (_, Event::Outdated) => {
                let fresh = Audit::new(self.partition, self.node, self.limits);
                let away = std::mem::take(&mut self.away);
                let (world, told) = (self.world.take(), self.told);
                let seen = std::mem::take(&mut self.seen);
                *self = Audit {
                    away,
                    world,
                    told,
                    seen,
                    ..fresh
                };
                self.doing = Doing::Loading;
                self.failed(now, "");
            }
            (Doing::KeepingDay, Event::DayKept) => {
                self.doing = Doing::Nothing;
                self.record.closed = None;
                self.dirty = true;
            }
            (Doing::Nothing, Event::Failed(_)) => return,
            (_, Event::Failed(why)) => return self.failed_then(now, &why, out),
            // Nothing that was asked for.
            _ => return,
        }
        if !matches!(self.doing, Doing::Nothing) {
            return;
        }
        self.go_on(now, out);
    }

    fn failed_then(&mut self, now: Now, why: &str, out: &mut Vec<Action>) {
        self.failed(now, why);
        self.go_on(now, out);
    }

    /// What was under way could not be done.
    fn failed(&mut self, now: Now, why: &str) {
        match self.doing {
            Doing::Mending => return self.all_mended(now, Vec::new(), why),
            Doing::Looking => {
                let tries = self.open.as_mut().map_or(TRIES, |open| {
                    open.tries += 1;
                    open.tries
                });
                if tries >= TRIES {
                    self.unread(why);
                    self.doing = Doing::Nothing;
                    return;
                }
            }
            Doing::Tracking => {
                let tries = self.tracked.as_mut().map_or(TRIES, |(.., tries)| {
                    *tries += 1;
                    *tries
                });
                if tries >= TRIES {
                    // Passes tell that it cannot be looked at.
                    return self.behind_prey();
                }
            }
            // Its document stays to be made.
            Doing::KeepingDay => self.dirty = true,
            _ => {}
        }
        self.doing = Doing::Nothing;
        self.until = Some(now.at + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn load(&mut self, out: &mut Vec<Action>) {
        self.doing = Doing::Loading;
        out.push(Action::Load);
    }

    fn loaded(&mut self, now: Now, record: Option<Box<Record>>) {
        self.doing = Doing::Nothing;
        self.recorded = now.at;
        self.pause = PAUSE;
        self.record = record.map_or_else(Record::default, |record| *record);
        self.record.partition = self.partition;
        if self.record.today.tally == Tally::default() {
            self.record.today.day = now.wall_ms / DAY_MS;
        }
        self.disbelieve(now);
        if let Some(pass) = &mut self.record.pass {
            pass.starts = pass.starts.saturating_add(1);
            pass.broken = (pass.broken + 1).min(BROKEN_MAX);
            (self.dirty, self.must) = (true, true);
        }
        let ended = self.record.ended.as_ref().map(|ended| &ended.pass.away);
        // Of what the queue has not all, the devices have to be gone through when they are back.
        if let Some(away) = ended.filter(|away| away.values().sum::<u64>() > AWAY_MAX as u64) {
            self.away.extend(away.keys());
        }
        self.loaded = true;
        let hunt = self.record.hunt.as_ref();
        self.prey_more = Some(hunt.and_then(|hunt| hunt.after.clone()));
        self.note_absent(now);
        self.more = Some(
            self.record
                .pass
                .as_ref()
                .and_then(|pass| pass.after.clone()),
        );
    }

    fn listed(&mut self, items: Vec<Item>, more: Option<Place>) {
        self.doing = Doing::Nothing;
        self.pause = PAUSE;
        self.page = items.into();
        self.more = more.map(Some);
        let starts = self.record.pass.as_ref().map_or(0, |pass| pass.starts);
        if starts > STARTS_MAX
            && let Some(item) = self.page.pop_front()
        {
            let why = format!("{starts} times somebody began to look at it and did not come back");
            self.open = Some(Open {
                item,
                done: 0,
                whole: false,
                tries: 0,
                replaced: 0,
                counted: 0,
            });
            self.unread(&why);
        }
    }

    /// For how many seconds an object had been there when this pass was begun, since the one before.
    fn exposure_s(&self, item: &Item) -> u64 {
        let begun = self.record.pass.as_ref().map_or(0, |pass| pass.begun_ms);
        begun.saturating_sub(self.seen_ms(item)) / 1000
    }

    /// When an object was looked at before, or made.
    fn seen_ms(&self, item: &Item) -> u64 {
        let before = self.record.ended.as_ref();
        let before = before.map_or(0, |ended| ended.pass.begun_ms);
        item.modified_ms.max(before)
    }

    fn stripe(&mut self, now: Now, looked: &Looked) {
        self.doing = Doing::Nothing;
        self.slow = now.at.since(self.asked) >= repair::GATHER;
        let Some(mut open) = self.open.take() else {
            return;
        };
        let exposure = self.exposure_s(&open.item);
        open.done = looked.nth + 1;
        open.tries = 0;
        let readable = looked.whole >= looked.needed;
        open.whole &= readable;
        let read = (u64::from(looked.whole) + looked.bad.len() as u64) * looked.shard_len;
        let is_new = looked.nth >= open.counted;
        open.counted = open.counted.max(open.done);
        let tally = &mut self.record.today.tally;
        tally.stripes += u64::from(is_new);
        tally.shards += looked.shards() * u64::from(is_new);
        tally.shard_bytes += read;
        tally.away += looked.away.len() as u64;
        if readable && is_new {
            tally.shard_s += exposure.saturating_mul(looked.shards());
        }
        if let Some(pass) = &mut self.record.pass {
            pass.shard_bytes += read;
            *pass.margins.entry(looked.margin()).or_default() += u64::from(is_new);
            for (_, device) in &looked.away {
                *pass.away.entry(*device).or_default() += 1;
            }
            pass.within = Some((open.item.version, open.done));
            pass.starts = 0;
            changed::note_hidden(pass, &open.item, looked);
        }
        self.came_on();
        self.found(now, &open.item, looked);
        self.open = Some(open);
    }

    fn over(&mut self, inline: bool) {
        self.doing = Doing::Nothing;
        let Some(open) = &self.open else {
            return;
        };
        let exposure = self.exposure_s(&open.item);
        let tally = &mut self.record.today.tally;
        tally.objects += 1;
        tally.bytes += open.item.size;
        tally.inline += u64::from(inline);
        // Nobody has looked at what rides in the journal.
        if open.whole && !inline {
            tally.object_s += exposure;
        }
        if let Some(pass) = &mut self.record.pass {
            pass.objects += 1;
        }
        self.behind_open();
    }

    fn unread(&mut self, why: &str) {
        self.record.today.tally.unread += 1;
        if let (Some(open), Some(pass)) = (&self.open, &mut self.record.pass) {
            let item = &open.item;
            pass.note_unread(&format!("ashlar://{}/{}: {why}", item.bucket, item.key));
        }
        self.behind_open();
    }

    /// Goes on behind the object.
    fn behind_open(&mut self) {
        self.doing = Doing::Nothing;
        let Some(open) = self.open.take() else {
            return;
        };
        if let Some(pass) = &mut self.record.pass {
            pass.after = Some(open.item.behind());
            (pass.within, pass.starts) = (None, 0);
        }
        self.came_on();
    }

    /// Something more was looked at.
    fn came_on(&mut self) {
        (self.dirty, self.units, self.far) = (true, self.units + 1, self.far + 1);
        if self.far >= STRIDE
            && let Some(pass) = &mut self.record.pass
        {
            pass.broken = 0;
        }
    }

    fn must_record(&self, now: Now) -> bool {
        let broken = self.record.pass.as_ref().map_or(0, |pass| pass.broken);
        let stride = (STRIDE >> broken.min(BROKEN_MAX)).max(1);
        let late = now.at >= self.recorded + self.limits.record;
        self.dirty && (self.must || late || self.units >= stride)
    }

    fn write(&mut self, now: Now, out: &mut Vec<Action>) {
        let day = now.wall_ms / DAY_MS;
        let record = &mut self.record;
        if day > record.today.day && record.closed.is_none() {
            let today = Closed {
                day,
                ..Closed::default()
            };
            let before = std::mem::replace(&mut record.today, today);
            record.closed = Some(before).filter(|it| it.tally != Tally::default());
        }
        (record.by, record.at_ms) = (self.node, now.wall_ms);
        self.doing = Doing::Recording;
        out.push(Action::Record(
            Box::new(record.clone()),
            self.losses.clone(),
        ));
    }

    /// Nothing is under way: what is next?
    fn go_on(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.until.is_some() {
            return;
        }
        if !self.loaded {
            return self.load(out);
        }
        if self.must_record(now) {
            return self.write(now, out);
        }
        if !self.dirty
            && let Some(closed) = &self.record.closed
        {
            self.doing = Doing::KeepingDay;
            return out.push(Action::KeepDay(closed.clone()));
        }
        if self.mend_next(now, out) || self.hunt_next(now, out) {
            return;
        }
        // At the end of a hunt that is recorded before anything else.
        if self.must_record(now) {
            return self.write(now, out);
        }
        if self.record.pass.is_none() && !self.begin(now) {
            return self.rest(now, out);
        }
        self.asked = now.at;
        if let Some(open) = &self.open {
            self.doing = Doing::Looking;
            // After a failure it is opened anew.
            return out.push(match open.tries {
                0 => Action::Next,
                _ => Action::Look(open.item.clone(), open.done),
            });
        }
        if let Some(item) = self.page.pop_front() {
            let within = self.record.pass.as_ref().and_then(|pass| pass.within);
            let done = within.filter(|(version, _)| *version == item.version);
            let done = done.map_or(0, |(_, done)| done);
            self.open = Some(Open {
                item: item.clone(),
                done,
                whole: done == 0,
                tries: 0,
                replaced: 0,
                counted: done,
            });
            self.doing = Doing::Looking;
            return out.push(Action::Look(item, done));
        }
        match self.more.take() {
            Some(after) => {
                self.more = Some(after.clone());
                self.doing = Doing::Listing;
                out.push(Action::List(after));
            }
            None => {
                self.end(now);
                self.write(now, out);
            }
        }
    }

    /// Begins a pass, if it is time to.
    fn begin(&mut self, now: Now) -> bool {
        if now.wall_ms < self.next_pass_ms() {
            return false;
        }
        self.early = false;
        self.record.pass = Some(Pass {
            begun_ms: now.wall_ms,
            ..Pass::default()
        });
        self.more = Some(None);
        // Whoever comes after a crash is to know that it was begun.
        (self.dirty, self.must) = (true, true);
        true
    }

    fn end(&mut self, now: Now) {
        if let Some(pass) = self.record.pass.take() {
            let ended_ms = now.wall_ms;
            self.record.ended = Some(Ended { ended_ms, pass });
            self.record.today.tally.passes += 1;
            self.dirty = true;
        }
    }

    /// When the next pass begins, as far as is known now.
    fn next_pass_ms(&self) -> u64 {
        let pass = u64::try_from(self.limits.pass.as_millis()).unwrap_or(u64::MAX);
        match &self.record.ended {
            None => 0,
            Some(ended) if self.early || ended.pass.again => ended.ended_ms,
            Some(ended) => ended.pass.begun_ms.saturating_add(pass).max(ended.ended_ms),
        }
    }

    /// Nothing is to be done until a pass or a finding is due.
    fn rest(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.dirty {
            return self.write(now, out);
        }
        let due = queue::due(&self.record.open).unwrap_or(u64::MAX);
        let wait = self.next_pass_ms().min(due).saturating_sub(now.wall_ms);
        // Clocks may be set: it looks again before long.
        let wait = Duration::from_millis(wait).clamp(Duration::from_millis(10), PAUSE_MAX);
        self.until = Some(now.at + wait);
    }
}

//! The auditor against a store that forgets, hides and loses shards, and against its own end at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId, StripeId};
use ashlar_layout::time::Instant;
use proptest::prelude::*;

use crate::audit::{Action, Audit, Event, Limits, Looked, Now, Prey, World};
use crate::mends_tests::mends;
use crate::queue::{AWAY_MAX, Finding, OPEN_MAX, Outcome};
use crate::record::{Closed, DAY_MS, Item, Loss, Place, Record, decode, encode};
use crate::tally::{Kind, Tally};

const LIMITS: Limits = Limits {
    pass: Duration::from_secs(1000),
    wait: Duration::from_secs(900),
    record: Duration::from_secs(10),
};
const K: usize = 1;
const SHARDS: usize = 4;
/// Objects that a page lists.
const PAGE: usize = 7;

/// Objects of stripes of shards: which are there. Shard i of each is on device i, or, if it was put elsewhere so many
/// times, on one a hundred times as far.
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<String, Vec<[bool; SHARDS]>>,
    /// How often stripes were put elsewhere.
    pub(crate) moves: BTreeMap<(String, usize), u32>,
    /// Nothing can be put elsewhere now.
    pub(crate) full: bool,
    pub(crate) away: BTreeSet<DeviceNo>,
    pub(crate) now: Now,
    record: Option<Vec<u8>>,
    pub(crate) version: u64,
    pub(crate) losses: BTreeMap<StripeId, Loss>,
    days: BTreeMap<u64, Tally>,
    /// Stripes that were read, in order.
    pub(crate) read: Vec<StripeId>,
    /// How many are mended before the others, by margin.
    pub(crate) mended: Vec<i32>,
    /// It ends whoever looks at it.
    poison: Option<String>,
}

fn stripe_id(key: &str, nth: usize) -> StripeId {
    let all = |all: u64, b| all.wrapping_mul(131).wrapping_add(u64::from(b));
    let writer = key.bytes().fold(7, all);
    StripeId {
        writer,
        attempt: nth as u64,
    }
}

impl Store {
    pub(crate) fn new(objects: usize, stripes: usize) -> Store {
        let object = |i| (format!("key-{i:04}"), vec![[true; SHARDS]; stripes]);
        Store {
            objects: (0..objects).map(object).collect(),
            moves: BTreeMap::new(),
            full: false,
            away: BTreeSet::new(),
            now: Now {
                at: Instant(1),
                wall_ms: 20_000 * DAY_MS + 5,
            },
            record: None,
            version: 0,
            losses: BTreeMap::new(),
            days: BTreeMap::new(),
            read: Vec::new(),
            mended: Vec::new(),
            poison: None,
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now.at = self.now.at + time;
        self.now.wall_ms += time.as_millis() as u64;
    }

    pub(crate) fn record(&self) -> Record {
        decode(self.record.as_ref().unwrap()).unwrap()
    }

    fn turn(&self, key: &str, nth: usize) -> u32 {
        let at = (key.to_owned(), nth);
        self.moves.get(&at).copied().unwrap_or(0)
    }

    pub(crate) fn name(&self, key: &str, nth: usize) -> StripeId {
        stripe_id(key, nth).moved_by(self.turn(key, nth))
    }

    pub(crate) fn devices(&self, key: &str, nth: usize) -> [DeviceNo; SHARDS] {
        let far = 100 * self.turn(key, nth);
        std::array::from_fn(|i| DeviceNo(far + i as u32))
    }

    /// How devices are; those that are away are out, unless something is held against it.
    pub(crate) fn world(&self, held: Option<&str>) -> Event {
        let all = (0..SHARDS as u32).map(DeviceNo);
        let (away, serving) = all.partition(|no| self.away.contains(no));
        Event::World(World {
            serving,
            out: held.map_or(self.away.clone(), |_| BTreeSet::new()),
            away,
            held: held.map(str::to_owned),
        })
    }

    /// Two stripes at a time at the most.
    fn track(&self, item: &Item, from: usize, gone: &BTreeSet<DeviceNo>) -> Event {
        let Some(stripes) = self.objects.get(&item.key) else {
            return Event::Changed;
        };
        let mut found = Vec::new();
        for nth in from..stripes.len() {
            let devices = self.devices(&item.key, nth);
            let gone: Vec<_> = devices.into_iter().filter(|it| gone.contains(it)).collect();
            if gone.is_empty() {
                continue;
            }
            if found.len() == 2 {
                return Event::Tracked(found, Some(nth as u64));
            }
            found.push(Prey {
                stripe: self.name(&item.key, nth),
                nth: nth as u64,
                margin: i32::try_from(SHARDS - K - gone.len()).unwrap(),
                gone,
            });
        }
        Event::Tracked(found, None)
    }

    /// Puts a stripe elsewhere, if all that is wrong with it is that these devices are away.
    pub(crate) fn relocate(&mut self, finding: &Finding, gone: &BTreeSet<DeviceNo>) -> Outcome {
        let nth = finding.nth as usize;
        if self.name(&finding.item.key, nth) != finding.stripe {
            return Outcome::Seen(None);
        }
        assert!(finding.item.may_move(), "{finding:?}");
        let Some(looked) = self.look(&finding.item, nth, &[]) else {
            return Outcome::Seen(None);
        };
        let is_gone = |(_, device): &(u16, DeviceNo)| gone.contains(device);
        if !looked.bad.is_empty() || !looked.away.iter().any(is_gone) {
            return Outcome::Seen(Some(looked));
        }
        if self.full {
            return Outcome::Failed("no device has room".to_owned());
        }
        *self
            .moves
            .entry((finding.item.key.clone(), nth))
            .or_default() += 1;
        Outcome::Moved(looked)
    }

    pub(crate) fn look(&mut self, item: &Item, nth: usize, mends: &[u16]) -> Option<Looked> {
        let (stripe, devices) = (self.name(&item.key, nth), self.devices(&item.key, nth));
        let away = self.away.clone();
        let shards = self.objects.get_mut(&item.key)?.get_mut(nth)?;
        self.read.push(stripe);
        let device = |i: usize| devices[i];
        let mut looked = Looked {
            stripe,
            nth: nth as u64,
            shard_len: 64,
            needed: K as u32,
            ..Looked::default()
        };
        for (i, there) in shards.iter().enumerate() {
            match (away.contains(&device(i)), *there) {
                (true, _) => looked.away.push((i as u16, device(i))),
                (false, true) => looked.whole += 1,
                (false, false) => looked.bad.push((i as u16, Kind::Rot, device(i))),
            }
        }
        if !mends.is_empty() && looked.whole >= looked.needed {
            self.mended.push(looked.margin());
            for (i, ..) in looked.bad.iter().filter(|(i, ..)| mends.contains(i)) {
                shards[usize::from(*i)] = true;
                looked.mended.push(*i);
            }
        }
        Some(looked)
    }

    pub(crate) fn all(&self) -> Tally {
        let mut all = Tally::default();
        for day in self.days.values() {
            all.add(day);
        }
        let record = self.record();
        all.add(&record.today.tally);
        if let Some(closed) = record.closed.filter(|it| !self.days.contains_key(&it.day)) {
            all.add(&closed.tally);
        }
        all
    }
}

trait MovedBy {
    fn moved_by(self, turn: u32) -> StripeId;
}

impl MovedBy for StripeId {
    fn moved_by(self, turn: u32) -> StripeId {
        match turn {
            0 => self,
            turn => self.moved(u64::from(turn)),
        }
    }
}

/// Who carries out what the auditor says.
pub(crate) struct Driver {
    pub(crate) audit: Audit,
    pub(crate) version: u64,
    open: Option<(Item, usize)>,
    pub(crate) todo: Vec<Action>,
}

impl Driver {
    pub(crate) fn new(store: &Store) -> Driver {
        let mut driver = Driver {
            audit: Audit::new(PartitionId(3), NodeId(1), LIMITS),
            version: 0,
            open: None,
            todo: Vec::new(),
        };
        driver.event(store, Event::Start);
        driver
    }

    pub(crate) fn event(&mut self, store: &Store, event: Event) {
        assert!(self.todo.is_empty(), "one thing is under way at a time");
        self.audit.on_event(store.now, event, &mut self.todo);
        assert!(self.todo.len() <= 1, "{:?}", self.todo);
    }

    /// The next stripe of the open object.
    fn stripe(&mut self, store: &mut Store) -> Option<Event> {
        let (item, nth) = self.open.as_mut()?;
        if store.poison.as_ref() == Some(&item.key) {
            return None;
        }
        if !store.objects.contains_key(&item.key) {
            return Some(Event::Changed);
        }
        let looked = store.look(item, *nth, &[]);
        *nth += 1;
        Some(looked.map_or(Event::Over(false), Event::Stripe))
    }

    /// Carries out one action; false if there is nothing to do now. None: it has ended of it.
    pub(crate) fn step(&mut self, store: &mut Store) -> Option<bool> {
        let Some(action) = self.todo.pop() else {
            if self
                .audit
                .next_deadline()
                .is_some_and(|at| at <= store.now.at)
            {
                self.event(store, Event::Deadline);
                return Some(true);
            }
            return Some(false);
        };
        let event = match action {
            Action::Load => {
                self.version = store.version;
                self.open = None;
                let record = store.record.as_ref().map(|_| Box::new(store.record()));
                Event::Loaded(record)
            }
            Action::List(after) => {
                let after = after.map_or(String::new(), |place| place.key);
                let behind = store.objects.range(after.clone()..);
                let behind = behind.map(|(key, _)| key).filter(|key| **key > after);
                let mut keys: Vec<String> = behind.take(PAGE + 1).cloned().collect();
                let more = keys.len() > PAGE;
                keys.truncate(PAGE);
                let bucket = |key: &str| match key.starts_with("parts/") {
                    true => ashlar_layout::names::SYSTEM_BUCKET.to_owned(),
                    false => "bucket".to_owned(),
                };
                let item = |key: &String| Item {
                    bucket: bucket(key),
                    key: key.clone(),
                    version: 1,
                    id: 1,
                    modified_ms: store.now.wall_ms - 5000,
                    size: 100,
                    ..Item::default()
                };
                let items: Vec<Item> = keys.iter().map(item).collect();
                let next = items.last().filter(|_| more).map(|item| Place {
                    id: None,
                    ..item.behind()
                });
                Event::Listed(items, next)
            }
            Action::Look(item, done) => {
                self.open = Some((item, done as usize));
                self.stripe(store)?
            }
            Action::Next => self.stripe(store)?,
            Action::Mend(jobs) => {
                let stripes = jobs.iter().map(|job| job.finding.stripe);
                let different: BTreeSet<StripeId> = stripes.collect();
                assert_eq!(different.len(), jobs.len(), "each stripe once");
                let done = jobs.iter();
                let done = done.map(|job| (job.finding.stripe, self.mend(store, job)));
                Event::Mended(done.collect())
            }
            Action::Track(item, from, gone) => store.track(&item, from as usize, &gone),
            Action::Record(record, losses) => {
                for loss in losses {
                    store.losses.entry(loss.stripe).or_insert(loss);
                }
                if self.version == store.version {
                    store.record = Some(encode(&*record).unwrap());
                    store.version += 1;
                    self.version = store.version;
                    Event::Recorded
                } else {
                    Event::Outdated
                }
            }
            Action::KeepDay(Closed { day, tally }) => {
                let kept = store.days.entry(day).or_insert_with(|| tally.clone());
                assert_eq!(*kept, tally, "a day is closed once");
                Event::DayKept
            }
        };
        self.event(store, event);
        Some(true)
    }

    /// Until it has read the record.
    pub(crate) fn settle_loading(&mut self, store: &mut Store) {
        while matches!(self.todo.last(), Some(Action::Load)) {
            self.step(store);
        }
    }

    /// What it is told of devices: whatever is under way.
    pub(crate) fn event_if_idle(&mut self, store: &Store, event: Event) {
        if self.todo.is_empty() {
            self.event(store, event);
        } else {
            self.audit.on_event(store.now, event, &mut self.todo);
        }
    }

    /// Until it waits for the time.
    pub(crate) fn settle(&mut self, store: &mut Store) {
        for _ in 0..100_000 {
            match self.step(store) {
                Some(true) => {}
                Some(false) => return,
                None => panic!("it ended"),
            }
        }
        panic!("it does not come to rest");
    }
}

pub(crate) fn rot(store: &mut Store, object: usize, stripe: usize, shard: usize) -> u64 {
    let keys: Vec<String> = store.objects.keys().cloned().collect();
    let stripes = store.objects.get_mut(&keys[object % keys.len()]).unwrap();
    let at = stripe % stripes.len();
    let shards = &mut stripes[at];
    let whole = shards.iter().filter(|there| **there).count();
    if whole == K {
        return 0;
    }
    u64::from(std::mem::take(&mut shards[shard % SHARDS]))
}

/// Whether a stripe is in the queue, as far as that is recorded.
fn is_open(store: &Store, object: usize, stripe: usize) -> bool {
    let at = object % store.objects.len();
    let (key, stripes) = store.objects.iter().nth(at).unwrap();
    let id = stripe_id(key, stripe % stripes.len());
    store.record.is_some() && store.record().open.iter().any(|it| it.stripe == id)
}

#[test]
fn a_pass_looks_at_everything_once_and_then_rests() {
    let mut store = Store::new(30, 3);
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    assert_eq!(store.read.len(), 90);
    let record = store.record();
    let ended = record.ended.unwrap();
    assert_eq!(
        (ended.pass.objects, ended.pass.margins),
        (30, BTreeMap::from([(3, 90)]))
    );
    let tally = record.today.tally;
    assert_eq!((tally.objects, tally.bytes, tally.shards), (30, 3000, 360));
    assert_eq!((tally.object_s, tally.passes, tally.bad()), (150, 1, 0));
    // The next one begins when it is time to, and not before.
    store.pass(Duration::from_secs(999));
    driver.settle(&mut store);
    assert_eq!(store.read.len(), 90);
    store.pass(Duration::from_secs(2));
    driver.settle(&mut store);
    assert_eq!(store.read.len(), 180);
    // What was there before was there for as long as from the beginning of one pass to that of the other.
    let seconds = store.record().today.tally.object_s - 150;
    assert!((30 * 4..=30 * 1001).contains(&seconds), "{seconds}");
}

#[test]
fn a_clock_that_was_ahead_is_not_believed() {
    let mut store = Store::new(30, 3);
    store.now.wall_ms += 30 * DAY_MS;
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    assert_eq!(store.read.len(), 90);
    // The next head's clock is right: the next pass is not a month away, nor were objects there for a month.
    store.now.wall_ms -= 30 * DAY_MS;
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    store.pass(Duration::from_secs(1001));
    driver.settle(&mut store);
    assert_eq!(store.read.len(), 180);
    assert!(store.all().object_s <= 150 + 30 * 1002);
}

#[test]
fn what_has_gone_elsewhere_is_looked_for_at_once() {
    let mut store = Store::new(10, 1);
    assert_eq!(rot(&mut store, 4, 0, 1), 1);
    let mut driver = Driver::new(&store);
    let key = loop {
        if let Some(Action::Mend(jobs)) = driver.todo.last() {
            break jobs[0].finding.item.key.clone();
        }
        assert_eq!(driver.step(&mut store), Some(true));
    };
    // It gets another key, behind where the pass is.
    let object = store.objects.remove(&key).unwrap();
    store.objects.insert("a-key".to_owned(), object);
    driver.settle(&mut store);
    assert_eq!(store.objects["a-key"], [[true; SHARDS]]);
}

#[test]
fn least_margin_is_mended_first() {
    let mut store = Store::new(20, 2);
    for (object, shards) in [(3, 1), (5, 2), (6, 1)] {
        for shard in 0..shards {
            assert_eq!(rot(&mut store, object, 0, shard), 1);
        }
    }
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    // The one in the middle is mended before what was found before it.
    assert_eq!(store.mended, [1, 2, 2]);
    let tally = store.all();
    assert_eq!((tally.found[&Kind::Rot], tally.repaired), (4, 4));
    assert!(store.record().open.is_empty());
    let margins = store.record().ended.unwrap().pass.margins;
    assert_eq!(margins, BTreeMap::from([(3, 40)]), "all is as it should be");
}

#[test]
fn what_rots_before_it_is_mended_is_counted_first() {
    let mut store = Store::new(10, 1);
    assert_eq!(rot(&mut store, 4, 0, 1), 1);
    let mut driver = Driver::new(&store);
    while !mends(&driver) {
        assert_eq!(driver.step(&mut store), Some(true));
    }
    assert_eq!(rot(&mut store, 4, 0, 2), 1);
    assert_eq!(driver.step(&mut store), Some(true));
    // It ends before it has recorded what it found besides.
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    let tally = store.all();
    assert_eq!((tally.bad(), tally.repaired), (2, 2));
    assert!(
        store
            .objects
            .values()
            .flatten()
            .flatten()
            .all(|there| *there)
    );
}

#[test]
fn what_is_away_is_waited_for() {
    let mut store = Store::new(10, 1);
    store.away.insert(DeviceNo(3));
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    driver.event(&store, store.world(None));
    driver.settle(&mut store);
    let record = store.record();
    assert_eq!(record.open.len(), 10);
    let due = store.now.wall_ms + 900_000;
    let waits = |margin, tries, due| {
        move |it: &Finding| (it.margin, it.tries, it.due_ms) == (margin, tries, due)
    };
    assert!(record.open.iter().all(waits(2, 0, due)), "{record:?}");
    assert_eq!(store.read.len(), 10);
    assert_eq!(store.all().bad(), 0, "what is away is not known to be bad");
    // It is back, without one of its shards: that is found and made again, without a pass being due.
    store.away.clear();
    assert_eq!(rot(&mut store, 4, 0, 3), 1);
    let event = store.world(None);
    driver.event(&store, event);
    driver.settle(&mut store);
    let tally = store.all();
    assert_eq!((tally.bad(), tally.repaired), (1, 1));
    assert_eq!(store.record().open, []);
    // And what was beyond the queue is gone through again: all of it, since it may have missed anything.
    assert_eq!(tally.passes, 2);
}

#[test]
fn with_margin_there_is_time() {
    let mut store = Store::new(1, 1);
    store.away.insert(DeviceNo(3));
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    assert_eq!((store.record().open[0].margin, store.read.len()), (2, 1));
    store.pass(Duration::from_secs(899));
    driver.settle(&mut store);
    assert_eq!(store.read.len(), 1, "it may come back");
    store.pass(Duration::from_secs(1));
    driver.settle(&mut store);
    assert_eq!(store.read.len(), 2);
    // Without any to spare it is looked at again at once, and then ever more seldom.
    let mut store = Store::new(1, 1);
    store.away.extend([DeviceNo(2), DeviceNo(3)]);
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    let open = &store.record().open[0];
    assert_eq!((open.margin, open.tries, store.read.len()), (1, 1, 2));
}

#[test]
fn losses_are_told_by_name_and_once() {
    let mut store = Store::new(8, 2);
    let key = store.objects.keys().nth(5).unwrap().clone();
    store.objects.get_mut(&key).unwrap()[1] = [false; SHARDS];
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    store.pass(Duration::from_secs(1001));
    driver.settle(&mut store);
    let losses: Vec<&Loss> = store.losses.values().collect();
    assert_eq!(losses.len(), 1);
    assert_eq!((&losses[0].item.key, losses[0].nth), (&key, 1));
    assert_eq!((losses[0].whole, losses[0].bad.len()), (0, 4));
    assert_eq!((store.all().bad(), store.record().open), (0, vec![]));
}

#[test]
fn a_full_queue_counts_nothing_twice() {
    let many = OPEN_MAX + 150;
    let mut store = Store::new(many, 1);
    // Each has lost three and the fourth is away: none can be mended.
    for object in 0..many {
        assert_eq!(rot(&mut store, object, 0, 0), 1);
        assert_eq!(rot(&mut store, object, 0, 1), 1);
        assert_eq!(rot(&mut store, object, 0, 2), 1);
    }
    store.away.insert(DeviceNo(3));
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    let tally = store.all();
    assert_eq!((tally.bad(), tally.unqueued), (3 * OPEN_MAX as u64, 450));
    assert_eq!(store.record().open.len(), OPEN_MAX);
    store.away.clear();
    for _ in 0..4 {
        store.pass(Duration::from_secs(4000));
        driver.settle(&mut store);
    }
    let tally = store.all();
    assert_eq!(
        (tally.bad(), tally.repaired),
        (3 * many as u64, 3 * many as u64)
    );
    assert!(AWAY_MAX < OPEN_MAX && store.losses.is_empty());
}

/// However often it is killed, it comes on; and what kills it is passed over.
#[test]
fn a_crash_loop_comes_to_an_end() {
    let mut store = Store::new(400, 1);
    let poison = store.objects.keys().nth(300).unwrap().clone();
    store.poison = Some(poison.clone());
    let mut lives = 0;
    let mut driver = Driver::new(&store);
    loop {
        match driver.step(&mut store) {
            Some(true) => {}
            Some(false) => break,
            None => {
                lives += 1;
                assert!(lives < 30, "it is killed for ever");
                driver = Driver::new(&store);
            }
        }
    }
    let pass = store.record().ended.unwrap().pass;
    assert_eq!((pass.objects, pass.unread.len()), (399, 1));
    assert!(pass.unread[0].contains(&poison), "{:?}", pass.unread);
    assert!(store.read.len() < 400 + 2 * 256, "{}", store.read.len());
}

#[test]
fn killed_after_each_few_stripes_it_still_ends() {
    let mut store = Store::new(2, 300);
    let mut ended = false;
    for _ in 0..800 {
        let mut driver = Driver::new(&store);
        let until = store.read.len() + 3;
        while store.read.len() < until && !ended {
            match driver.step(&mut store) {
                Some(true) => {}
                _ => ended = true,
            }
        }
        if ended {
            break;
        }
    }
    assert!(ended, "it reads the same again and again");
    assert_eq!(
        store.record().ended.unwrap().pass.unread,
        Vec::<String>::new()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Rot, devices that come and go, two auditors of which either ends at any moment: in the end everything is whole,
    /// and as many shards were found and mended as were made to rot.
    #[test]
    fn as_many_are_found_as_were_bad(
        what in proptest::collection::vec((0u8..12, 0usize..1000, 0usize..100, 0usize..SHARDS), 1..150),
    ) {
        let mut store = Store::new(25, 3);
        let mut drivers = [Driver::new(&store), Driver::new(&store)];
        let mut injected = 0;
        for (kind, object, count, shard) in what {
            match kind {
                // One that is mended, which is not recorded yet, and rots again is the same finding.
                0..=2 if is_open(&store, object, count) => {}
                0..=2 => injected += rot(&mut store, object, count, shard),
                3 => drivers[shard % 2] = Driver::new(&store),
                4 => store.pass(Duration::from_secs(count as u64 * 700)),
                5 => {
                    // One at a time: with the margin of a rotten one that is not a loss.
                    store.away.clear();
                    if count % 2 == 0 {
                        store.away.insert(DeviceNo(shard as u32));
                    }
                }
                _ => {
                    let at = shard % 2;
                    for _ in 0..count {
                        drivers[at].step(&mut store);
                    }
                }
            }
        }
        store.away.clear();
        let mut last = Driver::new(&store);
        for _ in 0..6 {
            last.settle(&mut store);
            store.pass(Duration::from_secs(4000));
        }
        last.settle(&mut store);
        let all = store.all();
        prop_assert_eq!(store.losses.len(), 0);
        prop_assert_eq!(all.bad(), injected);
        prop_assert_eq!(all.repaired, injected);
        prop_assert!(store.objects.values().flatten().flatten().all(|there| *there));
        prop_assert_eq!(store.record().open, vec![]);
    }
}

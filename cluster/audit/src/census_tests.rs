//! Censuses against a store whose shards are an exact set: what nobody names is found, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, PartitionId, ShardId, StripeId};
use ashlar_layout::time::Instant;
use proptest::prelude::*;

use crate::audit::Now;
use crate::census::{Action, Census, Event, Passes, Range, Sight, Whole};
use crate::orphans::Orphans;
use crate::record::{DAY_MS, decode, encode};

const DEVICE: DeviceNo = DeviceNo(5);
const POLL: Duration = Duration::from_secs(10);
/// Keys of a partition.
const KEYS: u8 = 6;
/// Places that a walk tells at once.
const AT_ONCE: usize = 3;

/// A pass under way.
#[derive(Clone, Debug)]
struct Under {
    begun_ms: u64,
    /// The next key.
    next: u8,
    missed: bool,
    whole: bool,
}

#[derive(Clone, Debug, Default)]
struct Partition {
    under: Option<Under>,
    ended: Option<Whole>,
}

/// One device, and objects of one shard each that all stand on it.
struct Store {
    now: Now,
    partitions: BTreeMap<PartitionId, Partition>,
    objects: BTreeMap<(PartitionId, u8), u64>,
    /// What stands on the device.
    shards: BTreeSet<u64>,
    /// Shards that another key has named before.
    moved: BTreeSet<u64>,
    next: u64,
    marks: Option<(u64, BTreeSet<u64>)>,
    /// Some shards have a mark by chance.
    chance: bool,
    away: bool,
    document: Option<Vec<u8>>,
    census: Census,
    todo: Vec<Action>,
    /// All that were recorded at some time.
    told: BTreeSet<u64>,
}

impl Store {
    fn new() -> Store {
        let partitions = [1, 2, 3].map(|id| (PartitionId(id), Partition::default()));
        Store {
            now: Now {
                at: Instant(1),
                wall_ms: 20_000 * DAY_MS,
            },
            partitions: partitions.into(),
            objects: BTreeMap::new(),
            shards: BTreeSet::new(),
            moved: BTreeSet::new(),
            next: 1,
            marks: None,
            chance: false,
            away: false,
            document: None,
            census: Census::new(DEVICE, POLL),
            todo: Vec::new(),
            told: BTreeSet::new(),
        }
    }

    fn time(&mut self) {
        self.now.at = self.now.at + Duration::from_secs(1);
        self.now.wall_ms += 1000;
    }

    fn mark(&mut self, shard: u64) {
        if let Some((_, marks)) = &mut self.marks {
            marks.insert(shard);
        }
    }

    fn write(&mut self) -> u64 {
        let shard = self.next;
        self.next += 1;
        self.shards.insert(shard);
        self.mark(shard);
        shard
    }

    fn partition(&self, number: u8) -> PartitionId {
        let all: Vec<_> = self.partitions.keys().copied().collect();
        all[usize::from(number) % all.len()]
    }

    fn named(&self) -> BTreeSet<u64> {
        self.objects.values().copied().collect()
    }

    fn put(&mut self, at: (PartitionId, u8)) {
        let shard = self.write();
        if let Some(before) = self.objects.insert(at, shard) {
            self.shards.remove(&before);
        }
    }

    /// Goes on with a pass, or begins one; false when it ends.
    fn pass(&mut self, id: PartitionId) -> bool {
        self.time();
        let begun_ms = self.now.wall_ms;
        let away = self.away;
        let Some(partition) = self.partitions.get_mut(&id) else {
            return false;
        };
        let under = partition.under.get_or_insert(Under {
            begun_ms,
            next: 0,
            missed: false,
            whole: true,
        });
        if under.next == KEYS {
            let missed = under.missed.then_some(DEVICE);
            partition.ended = Some(Whole {
                begun_ms: under.begun_ms,
                whole: under.whole,
                missed: missed.into_iter().collect(),
            });
            partition.under = None;
            return false;
        }
        let key = under.next;
        under.next += 1;
        if let Some(shard) = self.objects.get(&(id, key)).copied() {
            match away {
                true => under.missed = true,
                false => self.mark(shard),
            }
        }
        true
    }

    fn sight(&self) -> Sight {
        let range = |id: PartitionId| -> Range { ((id.to_string(), String::new()), None) };
        let all = self.partitions.iter();
        all.map(|(id, partition)| {
            let passes = Passes {
                under_way: partition.under.as_ref().map(|under| under.begun_ms),
                ended: partition.ended.clone(),
            };
            (*id, (range(*id), passes))
        })
        .collect()
    }

    fn has_mark(&self, marks: &(u64, BTreeSet<u64>), shard: u64) -> bool {
        marks.1.contains(&shard) || self.chance && (shard * 7 + marks.0).is_multiple_of(5)
    }

    fn carry_out(&mut self, action: Action) -> Event {
        match action {
            Action::Load => {
                let found = self.document.as_ref();
                Event::Loaded(found.map(|bytes| Box::new(decode(bytes).unwrap())))
            }
            Action::Begin => {
                let salt = self.next * 3 + self.now.wall_ms / 1000;
                self.marks = Some((salt, BTreeSet::new()));
                Event::Begun(salt)
            }
            Action::See => Event::Seen(self.sight()),
            Action::Walk(salt, from) => match &self.marks {
                Some(marks) if marks.0 == salt => {
                    let here: Vec<u64> = self.shards.range(from..).copied().collect();
                    let next = here.get(AT_ONCE).copied();
                    let here = here.into_iter().take(AT_ONCE);
                    let here = here.filter(|shard| !self.has_mark(marks, *shard));
                    Event::Walked(here.collect(), next)
                }
                _ => Event::Forgotten,
            },
            Action::Name(place) => Event::Named(self.shards.contains(&place).then(|| {
                let stripe = StripeId {
                    writer: 1,
                    attempt: place,
                };
                (ShardId { stripe, index: 0 }, 10)
            })),
            Action::Record(document) => {
                let named = self.named();
                for place in document.shards.keys() {
                    if self.told.insert(*place) {
                        assert!(!named.contains(place), "{place} is named");
                    }
                }
                self.document = Some(encode(&*document).unwrap());
                Event::Recorded
            }
        }
    }

    /// Has the census do one thing.
    fn step(&mut self) {
        if let Some(action) = self.todo.pop() {
            let event = self.carry_out(action);
            return self.event(event);
        }
        self.event(Event::Deadline);
    }

    fn event(&mut self, event: Event) {
        self.census.on_event(self.now, event, &mut self.todo);
        assert!(self.todo.len() <= 1, "{:?}", self.todo);
    }

    fn orphans(&self) -> Orphans {
        self.document
            .as_ref()
            .map_or_else(Orphans::default, |bytes| decode(bytes).unwrap())
    }

    /// All partitions make a whole pass, and the census sees them do it.
    fn quiet_pass(&mut self) {
        for id in self.partitions.keys().copied().collect::<Vec<_>>() {
            while self.pass(id) {
                self.time();
            }
        }
        for _ in 0..60 {
            self.time();
            self.step();
        }
    }

    /// Nobody names those.
    fn truly(&self) -> BTreeSet<u64> {
        &self.shards - &self.named()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, u8),
    Delete(u8, u8),
    /// An object is removed, and its shard is not.
    Abandon(u8, u8),
    Leak,
    /// A key hands what it has to another one.
    Move((u8, u8), (u8, u8)),
    Pass(u8, u8),
    Unread(u8),
    Steps(u8),
    Away(bool),
    Reopen,
    Restart,
    Split(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let key = || (0..3u8, 0..KEYS);
    prop_oneof![
        4 => key().prop_map(|(a, b)| Op::Put(a, b)),
        2 => key().prop_map(|(a, b)| Op::Delete(a, b)),
        1 => key().prop_map(|(a, b)| Op::Abandon(a, b)),
        1 => Just(Op::Leak),
        4 => (key(), key()).prop_map(|(a, b)| Op::Move(a, b)),
        12 => (0..3u8, 1..20u8).prop_map(|(a, b)| Op::Pass(a, b)),
        1 => (0..3u8).prop_map(Op::Unread),
        8 => (1..30u8).prop_map(Op::Steps),
        1 => any::<bool>().prop_map(Op::Away),
        1 => Just(Op::Reopen),
        1 => Just(Op::Restart),
        1 => (0..3u8).prop_map(Op::Split),
    ]
}

impl Store {
    fn apply(&mut self, op: Op) {
        let at = |store: &Store, (part, key): (u8, u8)| (store.partition(part), key);
        match op {
            Op::Put(part, key) => self.put(at(self, (part, key))),
            Op::Delete(part, key) => {
                if let Some(shard) = self.objects.remove(&at(self, (part, key))) {
                    self.shards.remove(&shard);
                }
            }
            Op::Abandon(part, key) => drop(self.objects.remove(&at(self, (part, key)))),
            Op::Leak => drop(self.write()),
            Op::Move(from, to) => {
                let (from, to) = (at(self, from), at(self, to));
                let once = |shard: &&u64| !self.moved.contains(*shard);
                if let Some(shard) = self.objects.get(&from).filter(once).copied() {
                    self.moved.insert(shard);
                    self.objects.remove(&from);
                    if let Some(before) = self.objects.insert(to, shard) {
                        self.shards.remove(&before);
                    }
                }
            }
            Op::Pass(part, times) => {
                for _ in 0..times {
                    self.pass(self.partition(part));
                }
            }
            Op::Unread(part) => {
                let id = self.partition(part);
                let under = self
                    .partitions
                    .get_mut(&id)
                    .and_then(|it| it.under.as_mut());
                // It passes over a key, and says so.
                if let Some(under) = under.filter(|under| under.next < KEYS) {
                    under.next += 1;
                    under.whole = false;
                }
            }
            Op::Steps(times) => {
                for _ in 0..times {
                    self.time();
                    self.step();
                }
            }
            Op::Away(away) => self.away = away,
            Op::Reopen => self.marks = None,
            Op::Restart => {
                self.todo.clear();
                self.census = Census::new(DEVICE, POLL);
                self.event(Event::Start);
            }
            Op::Split(part) => {
                let old = self.partition(part);
                let new = PartitionId(self.next as u32 + 100);
                self.next += 1;
                self.partitions.remove(&old);
                self.partitions.insert(new, Partition::default());
                let objects = std::mem::take(&mut self.objects);
                let there = |((id, key), shard)| match id == old {
                    true => ((new, key), shard),
                    false => ((id, key), shard),
                };
                self.objects = objects.into_iter().map(there).collect();
            }
        }
    }
}

fn begun() -> Store {
    let mut store = Store::new();
    store.event(Event::Start);
    store
}

#[test]
fn what_nobody_names_is_found_in_the_second_census() {
    let mut store = begun();
    for part in 1..=3 {
        for key in 0..KEYS {
            store.put((PartitionId(part), key));
        }
    }
    let leaks = [store.write(), store.write()];
    let mut censuses = 0;
    while store.orphans().censuses < 2 {
        assert!(store.orphans().shards.is_empty());
        store.quiet_pass();
        censuses += 1;
        assert!(censuses < 10, "{:?}", store.census);
    }
    let all = store.orphans();
    assert!(all.shards.keys().eq(&leaks), "{all:?}");
    let one = &all.shards[&leaks[0]];
    assert_eq!((one.stripe.attempt, one.bytes), (leaks[0], 10));
    assert_eq!(all.found, BTreeMap::from([(20_000, 2)]));
    // They are counted once; one that goes leaves the record, another one that is asked for now and then does not.
    store.shards.remove(&leaks[0]);
    for _ in 0..20 {
        store.quiet_pass();
    }
    let all = store.orphans();
    assert!(all.shards.keys().eq(&leaks[1..]), "{all:?}");
    assert_eq!((all.found[&20_000], all.cleared), (2, 1));
}

#[test]
fn passes_that_were_under_way_or_missed_something_do_not_count() {
    let mut store = begun();
    let first = PartitionId(1);
    for part in 1..=3 {
        store.put((PartitionId(part), 3));
    }
    store.pass(first);
    for _ in 0..5 {
        store.step();
    }
    // This pass began before.
    store.quiet_pass();
    assert_eq!(store.orphans().censuses, 0);
    store.away = true;
    store.quiet_pass();
    assert_eq!(store.orphans().censuses, 0, "the device was away");
    store.away = false;
    store.pass(first);
    store.apply(Op::Unread(0));
    store.quiet_pass();
    assert_eq!(store.orphans().censuses, 0, "something was not looked at");
    store.quiet_pass();
    assert_eq!(store.orphans().censuses, 1);
    assert!(store.orphans().shards.is_empty());
}

#[test]
fn what_is_asked_out_of_turn_changes_nothing() {
    let mut store = begun();
    assert_eq!(store.todo, [Action::Load]);
    store.event(Event::Start);
    store.event(Event::Deadline);
    assert_eq!(store.todo, [Action::Load]);
    store.todo.clear();
    // It could not be read: later.
    store.event(Event::Failed);
    assert_eq!(
        (store.todo.len(), store.census.next_deadline()),
        (0, Some(store.now.at + POLL))
    );
    store.event(Event::Begun(3));
    store.event(Event::Deadline);
    assert!(store.todo.is_empty());
    store.now.at = store.now.at + POLL;
    store.event(Event::Deadline);
    assert_eq!(store.todo, [Action::Load]);
    // Without partitions nothing follows.
    store.partitions.clear();
    store.shards.insert(9);
    for _ in 0..100 {
        store.time();
        store.step();
    }
    assert_eq!(store.orphans(), Orphans::default());
}

#[test]
fn more_than_there_is_room_for() {
    let mut store = begun();
    let many = crate::census::SUSPECTS_MAX as u64 + 10;
    store.shards = (1000..1000 + many).collect();
    store.next = 100_000;
    while store.orphans().censuses < 2 {
        store.quiet_pass();
        for _ in 0..3 * many {
            store.step();
        }
    }
    let all = store.orphans();
    assert_eq!((all.shards.len() as u64, all.more), (many - 10, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever happens, nothing is called an orphan that an object names; and when it is quiet, all that are none's
    /// are, and no others.
    #[test]
    fn exactly_those_that_nobody_names(chance: bool, ops in prop::collection::vec(op(), 1..150)) {
        let mut store = begun();
        store.chance = chance;
        for op in ops {
            store.apply(op);
        }
        (store.chance, store.away) = (false, false);
        for _ in 0..14 {
            store.quiet_pass();
        }
        let truly = store.truly();
        let all = store.orphans();
        prop_assert!(all.shards.keys().eq(&truly), "{:?}, and there are {truly:?}", all.shards.keys());
        let found: u64 = all.found.values().sum();
        prop_assert_eq!(found, all.shards.len() as u64 + all.cleared);
    }
}

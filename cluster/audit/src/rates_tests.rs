//! Known rates of rot and of devices that fail, years of them in a moment: what the auditor finds and counts, how late,
//! and how many stripes are lost, are what was injected and what the model says.
//!
//! Seeds are fixed, and bounds are four standard deviations of what is counted, beside what the model leaves out.

use std::collections::BTreeMap;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId, StripeId};
use ashlar_layout::time::Instant;

use crate::audit::{Action, Audit, Event, Limits, Looked, Now};
use crate::durability::{YEAR_S, found_after_s, measure};
use crate::markov::Stripe;
use crate::queue::{How, Job, Outcome};
use crate::record::{Closed, DAY_MS, Item, Loss, Place, Record};
use crate::tally::{Kind, Tally};

/// From one pass to the next.
pub(crate) const PASS: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of the time of a pass, the share in which it looks at everything; then it rests.
const BUSY: f64 = 0.9;
const PAGE: usize = 100;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound as u64) as usize
    }

    /// Years until something happens that happens so often a year.
    fn years(&mut self, rate: f64) -> f64 {
        let uniform = ((self.draw() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -uniform.ln() / rate
    }
}

/// What happens to the store, and how often a year.
#[derive(Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) k: usize,
    pub(crate) m: usize,
    pub(crate) objects: usize,
    pub(crate) devices: usize,
    /// Of each shard.
    pub(crate) rot: f64,
    /// Of each device: all that is on it is gone, and another one is there at once.
    pub(crate) fails: f64,
    /// Zones, of as many devices each, and how many shards of a stripe one of them has at most.
    pub(crate) zones: usize,
    pub(crate) in_a_zone: usize,
    /// Of each zone: all that is on its devices is gone, and others are there at once.
    pub(crate) zone_fails: f64,
    pub(crate) passes: u32,
}

/// Nothing happens to it, and there are no zones.
pub(crate) const QUIET: Rates = Rates {
    k: 1,
    m: 0,
    objects: 0,
    devices: 1,
    rot: 0.0,
    fails: 0.0,
    zones: 1,
    in_a_zone: usize::MAX,
    zone_fails: 0.0,
    passes: 0,
};

/// An object of one stripe.
struct Object {
    made_ms: u64,
    devices: Vec<usize>,
    /// Since when each shard is bad, and of which kind.
    bad: Vec<Option<(u64, Kind)>>,
    /// Whether it was looked at since.
    seen: Vec<bool>,
}

pub(crate) struct Store {
    rates: Rates,
    random: Random,
    now_s: f64,
    /// When a shard rots next, when a device fails, and when a zone does.
    next_s: [f64; 3],
    /// Zones that failed.
    pub(crate) zones_lost: u64,
    objects: BTreeMap<u64, Object>,
    /// Their names, in no order.
    names: Vec<u64>,
    record: Option<Record>,
    /// Days that are over.
    kept: Tally,
    pub(crate) losses: Vec<Loss>,
    pub(crate) injected: BTreeMap<Kind, u64>,
    /// For how many milliseconds what was found had been bad.
    pub(crate) lag_ms: u64,
    pub(crate) found: u64,
    mended: u64,
    /// Bad shards of what was lost, and how many of them had been found before the others were bad.
    gone: u64,
    found_and_gone: u64,
}

fn key(name: u64) -> String {
    format!("{name:012}")
}

impl Store {
    fn new(rates: Rates, seed: u64) -> Store {
        let mut store = Store {
            rates,
            random: Random(seed),
            now_s: 20_000.0 * 86_400.0,
            next_s: [0.0; 3],
            zones_lost: 0,
            objects: BTreeMap::new(),
            names: Vec::new(),
            record: None,
            kept: Tally::default(),
            losses: Vec::new(),
            injected: BTreeMap::new(),
            lag_ms: 0,
            found: 0,
            mended: 0,
            gone: 0,
            found_and_gone: 0,
        };
        for name in 0..rates.objects as u64 {
            store.make(name);
            store.names.push(name);
        }
        for event in 0..store.next_s.len() {
            store.next_s[event] = store.now_s + store.pause_s(event);
        }
        store
    }

    fn shards(&self) -> usize {
        self.rates.k + self.rates.m
    }

    fn zone(&self, device: usize) -> usize {
        device % self.rates.zones
    }

    fn make(&mut self, name: u64) {
        let mut devices: Vec<usize> = Vec::new();
        while devices.len() < self.shards() {
            let device = self.random.below(self.rates.devices);
            let zone = self.zone(device);
            let there = devices.iter().filter(|it| self.zone(**it) == zone);
            if there.count() < self.rates.in_a_zone && !devices.contains(&device) {
                devices.push(device);
            }
        }
        let object = Object {
            made_ms: self.now().wall_ms,
            bad: vec![None; devices.len()],
            seen: vec![false; devices.len()],
            devices,
        };
        self.objects.insert(name, object);
    }

    fn pause_s(&mut self, event: usize) -> f64 {
        let Rates {
            objects,
            rot,
            devices,
            fails,
            zones,
            zone_fails,
            ..
        } = self.rates;
        let all = match event {
            0 => rot * (objects * self.shards()) as f64,
            1 => fails * devices as f64,
            _ => zone_fails * zones as f64,
        };
        match all > 0.0 {
            true => self.random.years(all) * YEAR_S,
            false => f64::INFINITY,
        }
    }

    fn now(&self) -> Now {
        Now {
            at: Instant((self.now_s * 1e9) as u64),
            wall_ms: (self.now_s * 1e3) as u64,
        }
    }

    fn hurt(&mut self, name: u64, shard: usize, kind: Kind) {
        let now_ms = self.now().wall_ms;
        let Some(object) = self.objects.get_mut(&name) else {
            return;
        };
        // One that is bad already cannot become so.
        if object.bad[shard].is_none() {
            object.bad[shard] = Some((now_ms, kind));
            *self.injected.entry(kind).or_default() += 1;
        }
    }

    /// What is on these devices is gone.
    fn lose_devices(&mut self, gone: impl Fn(&Store, usize) -> bool) {
        for name in self.names.clone() {
            for shard in 0..self.shards() {
                if gone(self, self.objects[&name].devices[shard]) {
                    self.hurt(name, shard, Kind::Missing);
                }
            }
        }
    }

    /// Time passes, and in it happens what happens.
    fn pass(&mut self, seconds: f64, calm: bool) {
        let until = self.now_s + seconds;
        loop {
            let soonest = self.next_s.iter().copied().enumerate();
            let soonest = soonest.min_by(|a, b| a.1.total_cmp(&b.1));
            let Some((event, at_s)) = soonest.filter(|(_, at_s)| !calm && *at_s < until) else {
                break;
            };
            self.now_s = at_s;
            match event {
                0 => {
                    let name = self.names[self.random.below(self.names.len())];
                    let shard = self.random.below(self.shards());
                    self.hurt(name, shard, Kind::Rot);
                }
                1 => {
                    let failed = self.random.below(self.rates.devices);
                    self.lose_devices(|_, device| device == failed);
                }
                _ => {
                    let failed = self.random.below(self.rates.zones);
                    self.zones_lost += 1;
                    self.lose_devices(|store, device| store.zone(device) == failed);
                }
            }
            self.next_s[event] = self.now_s + self.pause_s(event);
        }
        self.now_s = until;
    }

    fn look(&mut self, name: u64, mends: bool) -> Option<Looked> {
        let now_ms = self.now().wall_ms;
        let object = self.objects.get_mut(&name)?;
        let mut looked = Looked {
            stripe: StripeId {
                writer: 1,
                attempt: name,
            },
            shard_len: 64,
            needed: self.rates.k as u32,
            ..Looked::default()
        };
        for (i, (bad, device)) in object.bad.iter().zip(&object.devices).enumerate() {
            match bad {
                None => looked.whole += 1,
                Some((_, kind)) => looked.bad.push((i as u16, *kind, DeviceNo(*device as u32))),
            }
        }
        if looked.is_lost() {
            return Some(looked);
        }
        for (i, ..) in &looked.bad {
            let at = usize::from(*i);
            // What has much margin waits for others before it is mended: it was found before.
            if let Some((since_ms, _)) = object.bad[at].filter(|_| !object.seen[at]) {
                self.lag_ms += now_ms - since_ms;
                self.found += 1;
                object.seen[at] = true;
            }
            if mends {
                (object.bad[at], object.seen[at]) = (None, false);
                self.mended += 1;
                looked.mended.push(*i);
            }
        }
        Some(looked)
    }

    fn item(&self, name: u64) -> Item {
        Item {
            bucket: "bucket".into(),
            key: key(name),
            id: 1,
            version: 1,
            modified_ms: self.objects[&name].made_ms,
            size: 100,
            ..Item::default()
        }
    }

    fn list(&self, after: Option<&Place>) -> (Vec<Item>, Option<Place>) {
        let after = after.and_then(|place| place.key.parse::<u64>().ok());
        let from = after.map_or(0, |name| name + 1);
        let names: Vec<u64> = self
            .objects
            .range(from..)
            .map(|(name, _)| *name)
            .take(PAGE)
            .collect();
        let items: Vec<Item> = names.iter().map(|name| self.item(*name)).collect();
        let more = items
            .last()
            .filter(|_| items.len() == PAGE)
            .map(Item::behind);
        (items, more)
    }

    /// What is lost is put anew, as another object.
    fn lose(&mut self, loss: Loss) {
        let name = loss.stripe.attempt;
        let Some(object) = self.objects.remove(&name) else {
            return;
        };
        self.gone += object.bad.iter().flatten().count() as u64;
        self.found_and_gone += object.seen.iter().filter(|it| **it).count() as u64;
        self.losses.push(loss);
        let next = self.names.iter().max().map_or(0, |most| most + 1);
        if let Some(slot) = self.names.iter_mut().find(|it| **it == name) {
            *slot = next;
        }
        self.make(next);
    }

    pub(crate) fn counted(&self) -> Tally {
        let mut all = self.kept.clone();
        if let Some(record) = &self.record {
            all.add(&record.today.tally);
            record.closed.iter().for_each(|it| all.add(&it.tally));
        }
        all
    }
}

/// Lets the shipped auditor look after a store for so many passes, and one more in which nothing happens.
pub(crate) fn run(rates: Rates, seed: u64) -> Store {
    let mut store = Store::new(rates, seed);
    let limits = Limits {
        pass: PASS,
        wait: Duration::ZERO,
        record: PASS / 100,
    };
    let each_s = PASS.as_secs_f64() * BUSY / rates.objects as f64;
    let mut audit = Audit::new(PartitionId(1), NodeId(1), limits);
    let (mut todo, mut passes) = (Vec::new(), 0);
    audit.on_event(store.now(), Event::Start, &mut todo);
    while passes <= u64::from(rates.passes) {
        let calm = passes == u64::from(rates.passes);
        let Some(action) = todo.pop() else {
            let at = audit.next_deadline().expect("it waits for something");
            let seconds = at.since(store.now().at).as_secs_f64();
            store.pass(seconds + 1e-3, calm);
            audit.on_event(store.now(), Event::Deadline, &mut todo);
            continue;
        };
        let event = match action {
            Action::Load => Event::Loaded(store.record.clone().map(Box::new)),
            Action::List(after) => {
                let (items, more) = store.list(after.as_ref());
                Event::Listed(items, more)
            }
            Action::Look(item, _) => {
                store.pass(each_s, calm);
                let looked = store.look(item.key.parse().unwrap(), false);
                looked.map_or(Event::Changed, Event::Stripe)
            }
            Action::Next => Event::Over(false),
            Action::Mend(jobs) => {
                let mend = |Job { finding, how }: Job| {
                    let mends = how == How::Mend;
                    let looked = store.look(finding.stripe.attempt, mends);
                    (finding.stripe, Outcome::Seen(looked))
                };
                Event::Mended(jobs.into_iter().map(mend).collect())
            }
            Action::Track(..) => panic!("no device is away"),
            Action::Record(record, losses) => {
                losses.into_iter().for_each(|loss| store.lose(loss));
                store.record = Some(*record);
                passes = store.counted().passes;
                Event::Recorded
            }
            Action::KeepDay(Closed { day, tally }) => {
                assert!(day < store.now().wall_ms / DAY_MS);
                store.kept.add(&tally);
                // It leaves the record only when that is written the next time.
                if let Some(record) = &mut store.record {
                    record.closed = None;
                }
                Event::DayKept
            }
        };
        audit.on_event(store.now(), event, &mut todo);
    }
    store
}

/// That `got` is `expected`, but for four standard deviations of a count of that, and this share of it.
pub(crate) fn is_near(what: &str, got: f64, expected: f64, share: f64) {
    let bound = 4.0 * expected.sqrt() + share * expected;
    let off = (got - expected).abs();
    assert!(
        off <= bound,
        "{what}: {got} is not {expected:.1} ± {bound:.1}"
    );
}

/// What was injected is what was found, to the unit, kind by kind; the ledger's rate is the one that was set.
pub(crate) fn all_is_counted(store: &Store) {
    let measured = measure(store.counted(), &store.losses);
    assert_eq!(measured.counted.found, store.injected);
    let of_lost: u64 = store.losses.iter().map(|loss| loss.bad.len() as u64).sum();
    let all: u64 = store.injected.values().sum();
    assert_eq!(measured.counted.repaired, store.mended);
    assert_eq!(store.mended + store.gone, all);
    // A loss has those that were not counted before.
    assert_eq!(of_lost, store.gone - store.found_and_gone);
    assert_eq!(measured.lost_stripes, store.losses.len() as u64);
    // How long it was bad: never more than the ledger says, and what follows from the pace in the mean.
    let real_s = store.lag_ms as f64 / 1e3 / store.found as f64;
    let told_s = measured.lag_s.unwrap();
    assert!(real_s <= told_s, "{real_s} {told_s}");
    let all_s = PASS.as_secs_f64();
    let half = all_s / 2.0;
    assert!((real_s / half - 1.0).abs() < 0.05, "{real_s} is not {half}");
    // The ledger has the pass before from its beginning, and not when it looked at just this object.
    let at_most = all_s * (1.0 + BUSY / 2.0);
    assert!(
        (told_s / at_most - 1.0).abs() < 0.05,
        "{told_s} is not {at_most}"
    );
}

pub(crate) fn years(rates: Rates) -> f64 {
    f64::from(rates.passes) * PASS.as_secs_f64() / YEAR_S
}

/// How many stripes are lost if more than m of their shards fail between two looks.
fn expected(rates: Rates, in_a_pass: f64) -> f64 {
    let (n, fails) = (rates.k + rates.m, 1.0 - (-in_a_pass).exp());
    let ways = |j: usize| (0..j).fold(1.0, |all, i| all * (n - i) as f64 / (i + 1) as f64);
    let power = |of: f64, times: usize| of.powi((times as u32).cast_signed());
    let just = |j: usize| ways(j) * power(fails, j) * power(1.0 - fails, n - j);
    let a_look: f64 = (rates.m + 1..=n).map(just).sum();
    // Before the first look, and behind the last one, there is half as much time.
    a_look * rates.objects as f64 * (f64::from(rates.passes) - 0.5)
}

fn modelled(rates: Rates) -> f64 {
    let stripe = Stripe {
        k: rates.k as u32,
        m: rates.m as u32,
        fails: rates.rot + rates.fails,
        mended: YEAR_S / found_after_s(PASS.as_secs_f64(), rates.m as u32),
        shocks: 0.0,
        struck: 0.0,
    };
    stripe.losses_a_year() * rates.objects as f64 * years(rates)
}

#[test]
fn rot_is_found_and_lost_as_often_as_the_model_says() {
    let a_pass = YEAR_S / PASS.as_secs_f64();
    for (k, m, rot, passes, seed) in [
        (2, 1, 0.02, 300, 1),
        (2, 2, 0.06, 200, 2),
        (4, 2, 0.04, 200, 3),
    ] {
        let rates = Rates {
            k,
            m,
            objects: 1000,
            devices: k + m,
            rot: rot * a_pass,
            fails: 0.0,
            passes,
            ..QUIET
        };
        let store = run(rates, seed);
        all_is_counted(&store);
        let shards = (rates.objects * (k + m)) as f64;
        // Of shards that are bad already none rots again.
        let injected = rates.rot * shards * years(rates) * (1.0 - rot / 2.0);
        is_near("rot", store.injected[&Kind::Rot] as f64, injected, 0.01);
        let measured = measure(store.counted(), &store.losses);
        let a_year = measured.bad_a_year.unwrap() * measured.shard_years;
        is_near("its rate", a_year, rates.rot * measured.shard_years, rot);
        let lost = expected(rates, rot);
        assert!(lost > 100.0, "{lost} are too few to tell");
        is_near(&format!("{k}+{m}"), store.losses.len() as f64, lost, 0.01);
        // The model takes few shards to fail in a pass: here it is off by what it neglects.
        let off = modelled(rates) / lost - 1.0;
        assert!(
            off.abs() < (k + m) as f64 * rot,
            "the model of {k}+{m} is off by {off}"
        );
    }
}

#[test]
fn devices_that_fail_lose_as_much_as_the_model_says() {
    let a_pass = YEAR_S / PASS.as_secs_f64();
    let rates = Rates {
        k: 2,
        m: 1,
        objects: 600,
        devices: 24,
        rot: 0.0,
        fails: 0.02 * a_pass,
        passes: 600,
        ..QUIET
    };
    let store = run(rates, 4);
    all_is_counted(&store);
    let shards = (rates.objects * 3) as f64;
    let injected = rates.fails * shards * years(rates);
    // A device takes 75 at once.
    let each = shards / rates.devices as f64;
    is_near(
        "gone",
        store.injected[&Kind::Missing] as f64 / each,
        injected / each,
        0.02,
    );
    // Two devices that fail at about the same time take so many stripes, and that is what happens by chance.
    let pair = rates.objects as f64 * 6.0 / (24.0 * 23.0);
    is_near(
        "lost",
        store.losses.len() as f64 / pair,
        modelled(rates) / pair,
        0.06,
    );
}

//! Devices that are away, and what becomes of what is on them once they are gone.
//!
//! A device is gone when it has been away for as long as is waited, and was so in several answers one after the other,
//! and if it is out: that all of the cluster have agreed on. Who sees it away may be cut off himself.
//! Only what was watched counts: not the time before a record was read, nor what a clock was set by. Then all objects
//! are gone through for stripes that are on it, by their manifests alone: that is done in a small part of the time that
//! a pass takes. They come into the queue, and are put elsewhere in its order.
//!
//! Invariants:
//! - nothing begins before it was told how devices are, and nothing is moved from a device that is not out;
//! - what came in again counts as having served, though nobody here has seen it;
//! - where it is stands in the record together with the queue: after a crash it goes on from there, and what was put
//!   elsewhere since is not on those devices any more;
//! - it waits while the queue has no room for what is only away: what is bad has its own.

use std::collections::BTreeSet;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, StripeId};

use super::{Action, Audit, CLOCKS_APART_MS, Doing, Looked, Now};
use crate::queue::{self, Finding, URGENT};
use crate::record::{Absent, Hunt, Item, Pass, cut};

/// So often it was told that a device is away, with nothing else in between, though it is not waited for: answers are
/// lost, and so are nodes for a moment.
const CONFIRMS: u32 = 3;
/// Between two answers, which come each 15 seconds or four times while is waited, no more than four times that counts.
const BETWEEN_MIN: Duration = Duration::from_secs(4);
const BETWEEN_MAX: Duration = Duration::from_secs(60);

/// How devices are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Those that serve,
    pub serving: BTreeSet<DeviceNo>,
    /// and those that do not.
    pub away: BTreeSet<DeviceNo>,
    /// Those that are out, as was agreed on: from no others anything is moved.
    pub out: BTreeSet<DeviceNo>,
    /// Why others that are away are not, if that is known.
    pub held: Option<String>,
}

/// A stripe with shards on devices that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prey {
    /// Which,
    pub stripe: StripeId,
    /// and the how many-th of its object.
    pub nth: u64,
    /// How many more shards it can lose, if all others are whole.
    pub margin: i32,
    /// The devices.
    pub gone: Vec<DeviceNo>,
}

/// A device that is away, as it was seen since this began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Answers one after the other by which it was so,
    answers: u32,
    /// and the time between them.
    time: Duration,
}

impl Seen {
    fn is_gone(self, wait: Duration) -> bool {
        self.answers >= CONFIRMS && self.time >= wait
    }
}

impl Audit {
    /// Times that have not come yet were written by a clock that was ahead: if they were waited for, nothing would be
    /// audited for as long as it was, and objects would seem to have been there for longer than they were.
    pub(super) fn disbelieve(&mut self, now: Now) {
        let latest = now.wall_ms.saturating_add(CLOCKS_APART_MS);
        let mend = |ms: &mut u64| {
            if *ms > latest {
                *ms = now.wall_ms;
            }
        };
        // By when it began a pass is told from others.
        let begun = |pass: &mut Pass| {
            if pass.begun_ms > latest {
                pass.begun_ms = now.wall_ms;
                pass.note_unread("a clock was wrong: when this pass began is not known");
            }
        };
        let record = &mut self.record;
        if let Some(pass) = &mut record.pass {
            begun(pass);
        }
        if let Some(ended) = &mut record.ended {
            mend(&mut ended.ended_ms);
            begun(&mut ended.pass);
        }
        for absent in record.absent.values_mut() {
            mend(&mut absent.since_ms);
        }
        let wait = u64::try_from(self.limits.wait.as_millis()).unwrap_or(u64::MAX);
        for finding in &mut record.open {
            mend(&mut finding.found_ms);
            mend(&mut finding.since_ms);
            if finding.due_ms > latest.saturating_add(wait) {
                finding.due_ms = now.wall_ms;
            }
        }
    }

    pub(super) fn world(&mut self, now: Now, world: World) {
        let back = self.away.intersection(&world.serving).copied();
        let back: BTreeSet<DeviceNo> = back.collect();
        self.away.extend(world.away.iter().copied());
        self.away.retain(|device| !back.contains(device));
        self.make_due(now, &back);
        if !back.is_empty() {
            match &mut self.record.pass {
                Some(pass) => (pass.again, self.dirty) = (true, true),
                None => self.early = true,
            }
        }
        self.come_in(&world);
        let gone = self.watch(now, &world);
        self.make_due(now, &gone);
        self.world = Some(world);
        let changed = self.loaded && (self.note_absent(now) | !gone.is_empty());
        // It may be waiting for just this.
        if self.doing == Doing::Nothing && self.loaded && (changed || !back.is_empty()) {
            self.until = None;
        }
    }

    /// What was out and is not any more has served, and may have been written to since.
    fn come_in(&mut self, world: &World) {
        let before = self.world.iter().flat_map(|before| &before.out);
        for device in before.filter(|device| !world.out.contains(device)) {
            self.seen.remove(device);
            if let Some(absent) = self.record.absent.get_mut(device) {
                self.dirty |= absent.hunted;
                absent.hunted = false;
            }
        }
    }

    /// What waits for one of these devices need not any more.
    fn make_due(&mut self, now: Now, devices: &BTreeSet<DeviceNo>) {
        for finding in &mut self.record.open {
            if finding.away.iter().any(|device| devices.contains(device)) {
                finding.due_ms = finding.due_ms.min(now.wall_ms);
            }
        }
    }

    /// Counts for how long devices have been seen away; which of them are gone now, and were not before.
    fn watch(&mut self, now: Now, world: &World) -> BTreeSet<DeviceNo> {
        let most = self.limits.wait.clamp(BETWEEN_MIN, BETWEEN_MAX);
        let since = self.told.map_or(Duration::ZERO, |told| now.at.since(told));
        self.told = Some(now.at);
        self.seen.retain(|device, _| world.away.contains(device));
        let mut gone = BTreeSet::new();
        for device in &world.away {
            let seen = self.seen.entry(*device).or_default();
            let before = *seen;
            if seen.answers > 0 {
                seen.time = seen.time.saturating_add(since.min(most));
            }
            seen.answers = seen.answers.saturating_add(1);
            let was_out = self
                .world
                .as_ref()
                .is_some_and(|it| it.out.contains(device));
            let is_new =
                |wait: &Duration| seen.is_gone(*wait) && !(was_out && before.is_gone(*wait));
            let waits = [Duration::ZERO, self.limits.wait];
            if world.out.contains(device) && waits.iter().any(is_new) {
                gone.insert(*device);
            }
        }
        gone
    }

    /// Writes down since when devices are away; whether anything is another than before.
    pub(super) fn note_absent(&mut self, now: Now) -> bool {
        let Some(world) = &self.world else {
            return false;
        };
        let record = &mut self.record;
        let before = (record.absent.len(), record.held.is_some());
        record
            .absent
            .retain(|device, _| world.away.contains(device));
        let mut changed = record.absent.len() != before.0;
        for device in &world.away {
            record.absent.entry(*device).or_insert_with(|| {
                changed = true;
                Absent {
                    since_ms: now.wall_ms,
                    ..Absent::default()
                }
            });
        }
        changed |= world.held.is_some() != before.1;
        record.held = world.held.as_deref().map(cut);
        if let Some(hunt) = &mut record.hunt {
            // One that came in meanwhile has other shards when it goes out again: it is gone through anew then.
            let is_out = |device: &DeviceNo| world.out.contains(device);
            hunt.gone
                .retain(|device| record.absent.contains_key(device) && is_out(device));
            if hunt.gone.is_empty() {
                record.hunt = None;
                self.forget_prey();
            }
        }
        self.dirty |= changed;
        changed
    }

    fn forget_prey(&mut self) {
        self.prey.clear();
        (self.prey_more, self.tracked) = (Some(None), None);
    }

    /// Whether a device of a stripe with this margin is gone.
    fn is_gone(&self, device: DeviceNo, margin: i32) -> bool {
        let wait = match margin <= URGENT {
            true => Duration::ZERO,
            false => self.limits.wait,
        };
        let out = |world: &World| world.out.contains(&device);
        self.world.as_ref().is_some_and(out)
            && self.record.absent.contains_key(&device)
            && self.seen.get(&device).is_some_and(|it| it.is_gone(wait))
    }

    /// Those devices of a stripe that are away and gone.
    pub(super) fn gone_of(
        &self,
        away: impl IntoIterator<Item = DeviceNo>,
        margin: i32,
    ) -> BTreeSet<DeviceNo> {
        let away = away.into_iter();
        away.filter(|device| self.is_gone(*device, margin))
            .collect()
    }

    /// Whether a stripe has to stay where it is, and nothing but devices that are gone is wrong with it: then it waits
    /// for something else than its turn.
    pub(super) fn must_stay(&self, item: &Item, looked: &Looked) -> bool {
        let mut away = looked.away.iter().map(|(_, device)| *device);
        let margin = looked.margin();
        !item.may_move()
            && looked.bad.is_empty()
            && !looked.away.is_empty()
            && away.all(|device| self.is_gone(device, margin))
    }

    /// The least margin that stripes have without the devices that are away, by what the last pass saw.
    fn least(&self) -> i32 {
        let ended = self.record.ended.as_ref();
        let least = ended.and_then(|ended| ended.pass.margins.keys().min());
        let away = i32::try_from(self.record.absent.len()).unwrap_or(i32::MAX);
        least.map_or(i32::MAX, |least| least.saturating_sub(away))
    }

    fn may_queue(&self) -> bool {
        queue::has_room(&self.record.open, false)
    }

    /// Goes on looking for what is on devices that are gone, if there are such.
    pub(super) fn hunt_next(&mut self, now: Now, out: &mut Vec<Action>) -> bool {
        if self.world.is_none() || !self.may_queue() {
            return false;
        }
        if self.record.hunt.is_none() && !self.begin_hunt(now) {
            return false;
        }
        let Some(hunt) = &self.record.hunt else {
            return false;
        };
        // One that somebody else began: as much as then has to be seen again.
        let devices = hunt.gone.iter().copied();
        if self.gone_of(devices, self.least()).is_empty() {
            return false;
        }
        if self.tracked.is_none() {
            self.tracked = self.prey.pop_front().map(|item| (item, 0, 0));
        }
        if let Some((item, from, _)) = &self.tracked {
            self.doing = Doing::Tracking;
            out.push(Action::Track(item.clone(), *from, hunt.gone.clone()));
            return true;
        }
        if let Some(after) = self.prey_more.clone() {
            self.doing = Doing::Scouting;
            out.push(Action::List(after));
            return true;
        }
        for device in &hunt.gone {
            if let Some(absent) = self.record.absent.get_mut(device) {
                absent.hunted = true;
            }
        }
        self.record.hunt = None;
        self.forget_prey();
        (self.dirty, self.must) = (true, true);
        false
    }

    fn begin_hunt(&mut self, now: Now) -> bool {
        let least = self.least();
        let all = self.record.absent.keys().copied();
        let gone = self.gone_of(all, least);
        let is_new = |device: &DeviceNo| !self.record.absent.get(device).is_none_or(|it| it.hunted);
        if !gone.iter().any(is_new) {
            return false;
        }
        self.forget_prey();
        self.make_due(now, &gone);
        for device in &gone {
            if let Some(absent) = self.record.absent.get_mut(device) {
                absent.parts = 0;
            }
        }
        self.record.hunt = Some(Hunt { gone, after: None });
        self.dirty = true;
        true
    }

    /// Takes stripes of the object in hand that are on devices which are gone, as far as there is room.
    pub(super) fn take_prey(&mut self, now: Now, prey: Vec<Prey>, next: Option<u64>) {
        self.doing = Doing::Nothing;
        let Some((item, from, tries)) = &mut self.tracked else {
            return;
        };
        *tries = 0;
        let item = item.clone();
        for it in prey {
            if !item.may_move() {
                for device in &it.gone {
                    if let Some(absent) = self.record.absent.get_mut(device) {
                        absent.parts += 1;
                    }
                }
                continue;
            }
            if let Some(known) = self.record.open.iter_mut().find(|f| f.stripe == it.stripe) {
                known.due_ms = known.due_ms.min(now.wall_ms);
                continue;
            }
            if !queue::has_room(&self.record.open, false) {
                *from = it.nth;
                return;
            }
            self.record.open.push(Finding {
                item: item.clone(),
                stripe: it.stripe,
                nth: it.nth,
                bad: Default::default(),
                away: it.gone,
                margin: it.margin,
                found_ms: now.wall_ms,
                since_ms: now.wall_ms,
                due_ms: now.wall_ms,
                tries: 0,
                why: String::new(),
            });
            self.dirty = true;
        }
        match next {
            // It comes further, or it is through with it.
            Some(next) if next > *from => *from = next,
            _ => self.behind_prey(),
        }
    }

    /// The object in hand is gone through.
    pub(super) fn behind_prey(&mut self) {
        self.doing = Doing::Nothing;
        let Some((item, ..)) = self.tracked.take() else {
            return;
        };
        if let Some(hunt) = &mut self.record.hunt {
            hunt.after = Some(item.behind());
            self.dirty = true;
            self.units += 1;
        }
    }

    /// A stripe of the queue is elsewhere now, whole.
    pub(super) fn moved(&mut self, now: Now, stripe: StripeId, looked: &Looked) {
        self.dirty = true;
        let open = &mut self.record.open;
        let Some(at) = open.iter().position(|it| it.stripe == stripe) else {
            return;
        };
        let finding = open.swap_remove(at);
        let tally = &mut self.record.today.tally;
        let stood = now.wall_ms.saturating_sub(finding.since_ms);
        *tally.margin_ms.entry(finding.margin).or_default() += stood;
        tally.moved += looked.away.len() as u64;
        for (_, device) in &looked.away {
            if let Some(absent) = self.record.absent.get_mut(device) {
                absent.moved += 1;
            }
        }
        let all = i64::try_from(looked.shards()).unwrap_or(i64::MAX) - i64::from(looked.needed);
        self.has_margin(finding.margin, i32::try_from(all).unwrap_or(i32::MAX));
    }
}

//! What was found, and what is done about it: into the queue, out of it, and to the losses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ashlar_layout::ids::StripeId;

use super::{Action, Audit, Doing, Looked, Now};
use crate::queue::{self, Finding, How, Job, OPEN_MAX, Outcome, URGENT, URGENT_MOVE};
use crate::record::{Item, Loss};

/// Findings that are mended together: each write of the record is a change of the journal, for one stripe as for many.
const BATCH: usize = 32;
/// Of those that wait for their turn fewer: while they are read at the pace of audits nothing else is found.
const BATCH_CALM: usize = 4;
/// For what is urgent it is not waited until there are so many, but for so long, while it is looked on, and until a
/// look ends: after a device was lost the next stripe is as bad.
pub(super) const GATHER: Duration = Duration::from_millis(100);

/// Whether it waits for nothing that is not urgent. What is only away is moved, and waits for its turn while others
/// want the devices, if one more may be lost: a batch of many would keep all else waiting for as long.
fn is_first(finding: &Finding) -> bool {
    let most = match finding.bad.is_empty() {
        true => URGENT_MOVE,
        false => URGENT,
    };
    finding.margin <= most
}

fn is_due(finding: &Finding, now: Now) -> bool {
    finding.due_ms <= now.wall_ms
}

impl Audit {
    pub(super) fn find(&mut self, stripe: StripeId) -> Option<&mut Finding> {
        self.record.open.iter_mut().find(|it| it.stripe == stripe)
    }

    /// Takes what was found of a stripe.
    pub(super) fn found(&mut self, now: Now, item: &Item, looked: &Looked) {
        if looked.bad.is_empty() && looked.away.is_empty() {
            return;
        }
        if looked.is_lost() {
            return self.lost(now, item, looked);
        }
        if self.must_stay(item, looked) {
            return;
        }
        let is_bad = !looked.bad.is_empty();
        if self.find(looked.stripe).is_none() {
            if !queue::has_room(&self.record.open, is_bad) {
                self.record.today.tally.unqueued += looked.bad.len() as u64;
                return;
            }
            self.record.open.push(Finding {
                item: item.clone(),
                stripe: looked.stripe,
                nth: looked.nth,
                bad: BTreeMap::new(),
                away: Vec::new(),
                margin: looked.margin(),
                found_ms: now.wall_ms,
                since_ms: now.wall_ms,
                due_ms: now.wall_ms,
                tries: 0,
                why: String::new(),
            });
        }
        self.add(now, looked);
        let away = looked.away.iter().map(|(_, device)| *device);
        let wait = match looked.margin() {
            ..=1 => 0,
            margin if !self.gone_of(away, margin).is_empty() => 0,
            _ => u64::try_from(self.limits.wait.as_millis()).unwrap_or(u64::MAX),
        };
        if let Some(finding) = self.find(looked.stripe)
            && finding.bad.is_empty()
        {
            finding.due_ms = finding.found_ms.saturating_add(wait);
        }
    }

    /// Counts what is bad of a stripe of the queue and was not known.
    fn add(&mut self, now: Now, looked: &Looked) {
        let before = self.record.ended.as_ref();
        let before = before.map_or(0, |ended| ended.pass.begun_ms);
        let tally = &mut self.record.today.tally;
        let open = self.record.open.iter_mut();
        let Some(finding) = open.into_iter().find(|it| it.stripe == looked.stripe) else {
            return;
        };
        finding.away = looked.away.iter().map(|(_, device)| *device).collect();
        finding.margin = looked.margin();
        let lag = now
            .wall_ms
            .saturating_sub(finding.item.modified_ms.max(before));
        for (index, kind, device) in &looked.bad {
            if finding.bad.insert(*index, (*kind, *device)).is_none() {
                *tally.found.entry(*kind).or_default() += 1;
                tally.lag_ms = tally.lag_ms.saturating_add(lag);
                tally.lag_longest_ms = tally.lag_longest_ms.max(lag);
                finding.due_ms = now.wall_ms;
                (self.dirty, self.fresh) = (true, true);
            }
        }
    }

    pub(super) fn lost(&mut self, now: Now, item: &Item, looked: &Looked) {
        let counted = self.find(looked.stripe).map(|it| it.bad.clone());
        let counted = counted.unwrap_or_default();
        // The object that it became a part of may have it elsewhere by now. If it does not, its own audit tells of it,
        // or whoever puts the upload together.
        if !item.may_move() {
            self.record.today.tally.moot += counted.len() as u64;
            self.record.open.retain(|it| it.stripe != looked.stripe);
            self.dirty = true;
            return;
        }
        let bad = looked.bad.iter().filter(|(i, ..)| !counted.contains_key(i));
        self.losses.push(Loss {
            item: item.clone(),
            stripe: looked.stripe,
            nth: looked.nth,
            found_ms: now.wall_ms,
            whole: looked.whole,
            needed: looked.needed,
            bad: bad
                .map(|(i, kind, device)| (*i, (*kind, *device)))
                .collect(),
        });
        self.record.open.retain(|it| it.stripe != looked.stripe);
        (self.dirty, self.must) = (true, true);
    }

    /// What was to be mended is, or is not: of what has no outcome, why not.
    pub(super) fn all_mended(
        &mut self,
        now: Now,
        outcomes: Vec<(StripeId, Outcome)>,
        why_not: &str,
    ) {
        self.doing = Doing::Nothing;
        let mut asked: BTreeSet<StripeId> = std::mem::take(&mut self.mending).into_iter().collect();
        for (stripe, outcome) in outcomes {
            if !asked.remove(&stripe) {
                continue;
            }
            match outcome {
                Outcome::Seen(looked) => self.mended(now, stripe, looked),
                Outcome::Moved(looked) => {
                    self.moved(now, stripe, &looked);
                    // Nobody else finds out that it was: whoever comes next finds a stripe that is whole.
                    self.must = true;
                }
                Outcome::Failed(why) => self.failed_one(now, stripe, &why),
            }
        }
        for stripe in asked {
            self.failed_one(now, stripe, why_not);
        }
    }

    fn failed_one(&mut self, now: Now, stripe: StripeId, why: &str) {
        if let Some(finding) = self.find(stripe) {
            finding.later(now.wall_ms, why);
            self.dirty = true;
        }
    }

    fn mended(&mut self, now: Now, stripe: StripeId, looked: Option<Looked>) {
        self.dirty = true;
        let open = &mut self.record.open;
        let Some(at) = open.iter().position(|it| it.stripe == stripe) else {
            return;
        };
        let finding = &mut open[at];
        let tally = &mut self.record.today.tally;
        let stood = now.wall_ms.saturating_sub(finding.since_ms);
        *tally.margin_ms.entry(finding.margin).or_default() += stood;
        finding.since_ms = now.wall_ms;
        let Some(looked) = looked else {
            // Its stripe may be another object's by now: of one that was given another key, or was put together of it.
            let known = !finding.bad.is_empty();
            tally.moot += finding.bad.len() as u64;
            open.swap_remove(at);
            match (known, &mut self.record.pass, &mut self.record.ended) {
                (false, ..) => {}
                (true, Some(pass), _) => pass.again = true,
                (true, None, Some(ended)) => ended.pass.again = true,
                (true, None, None) => {}
            }
            return;
        };
        if looked.is_lost() {
            let item = finding.item.clone();
            return self.lost(now, &item, &looked);
        }
        let (before, knew) = (finding.margin, finding.bad.len());
        self.add(now, &looked);
        let more = self.find(stripe).is_some_and(|it| it.bad.len() > knew);
        let Some(finding) = self.record.open.get_mut(at) else {
            return;
        };
        let only_looked = knew == 0;
        let still = |index: &u16| {
            let bad = looked.bad.iter().any(|(i, ..)| i == index);
            let away = looked.away.iter().any(|(i, _)| i == index);
            away || bad && !looked.mended.contains(index)
        };
        let all = finding.bad.len();
        finding.bad.retain(|index, _| still(index));
        let repaired = (all - finding.bad.len()) as u64;
        let took = now.wall_ms.saturating_sub(finding.found_ms);
        let tally = &mut self.record.today.tally;
        tally.repaired += repaired;
        tally.repair_ms = tally
            .repair_ms
            .saturating_add(took.saturating_mul(repaired));
        if repaired > 0 {
            tally.repair_longest_ms = tally.repair_longest_ms.max(took);
        }
        let (unbad, unaway) = (finding.bad.is_empty(), finding.away.is_empty());
        let item = finding.item.clone();
        self.has_margin(before, looked.margin());
        let stays = unbad && self.must_stay(&item, &looked);
        let Some(finding) = self.record.open.get_mut(at) else {
            return;
        };
        if unbad && unaway || stays {
            self.record.open.swap_remove(at);
        } else if more {
            // What is new is recorded, and then mended at once.
        } else if !only_looked || finding.bad.is_empty() {
            let why = match looked.why.is_empty() {
                true => "a device does not answer",
                false => &looked.why,
            };
            finding.later(now.wall_ms, why);
        }
    }

    /// A stripe that was looked at in this pass has another margin than it had then.
    pub(super) fn has_margin(&mut self, before: i32, now: i32) {
        if let Some(margins) = self.record.pass.as_mut().map(|pass| &mut pass.margins)
            && let Some(count) = margins.get_mut(&before).filter(|count| **count > 0)
        {
            *count -= 1;
            *margins.entry(now).or_default() += 1;
            margins.retain(|_, count| *count > 0);
        }
    }

    /// Whether it is time to mend what is due.
    fn is_time(&mut self, now: Now) -> bool {
        let open = &self.record.open;
        let due = open.iter().filter(|it| is_due(it, now));
        let (all, urgent) = due.fold((0, 0), |(all, urgent), it| {
            (all + 1, urgent + usize::from(it.margin <= URGENT))
        });
        if urgent == 0 {
            self.gathering = None;
        }
        let waited = match urgent {
            0 => false,
            _ => self.slow || now.at >= *self.gathering.get_or_insert(now.at) + GATHER,
        };
        let rests = self.open.is_none() && self.page.is_empty();
        waited || all >= BATCH || open.len() >= OPEN_MAX || rests
    }

    /// Mends what is due, if it is time for that.
    pub(super) fn mend_next(&mut self, now: Now, out: &mut Vec<Action>) -> bool {
        self.draining = self.draining || self.is_time(now);
        let open = &self.record.open;
        let mut next = match self.draining {
            true => queue::next(open, now.wall_ms, BATCH),
            false => Vec::new(),
        };
        // What is urgent waits for nothing that is not.
        if next.iter().any(|at| is_first(&open[*at])) {
            next.retain(|at| is_first(&open[*at]));
        } else {
            next.truncate(BATCH_CALM);
        }
        if next.is_empty() {
            if self.draining {
                (self.draining, self.gathering) = (false, None);
            }
            return false;
        }
        if self.fresh && next.iter().any(|at| !open[*at].bad.is_empty()) {
            self.write(now, out);
            return true;
        }
        let mut jobs: Vec<Job> = Vec::new();
        for at in next {
            let finding = &open[at];
            let gone = self.gone_of(finding.away.iter().copied(), finding.margin);
            let how = match finding.bad.is_empty() {
                false => How::Mend,
                true if !gone.is_empty() && finding.item.may_move() => How::Move(gone),
                true => How::Look,
            };
            // To move a stripe is to write its object anew: of one object nothing else is done meanwhile.
            let moves = matches!(how, How::Move(_));
            let clashes = |job: &Job| {
                let same = job.finding.item.is_of(&finding.item);
                same && (moves || matches!(job.how, How::Move(_)))
            };
            if !jobs.iter().any(clashes) {
                let finding = finding.clone();
                jobs.push(Job { finding, how });
            }
        }
        self.mending = jobs.iter().map(|job| job.finding.stripe).collect();
        self.doing = Doing::Mending;
        out.push(Action::Mend(jobs));
        true
    }
}

//! What must hold, and how it is judged after each step.
//!
//! Judged by what was written to the devices and what was told, not by what replicas think:
//! - `committed` is what any replica ever took for committed, in order;
//! - a head in office must hold all of it that is older than its reign;
//! - whoever answers a read must answer with the newest committed version: only the head in office
//!   commits, so there is no other right answer.

use std::sync::Arc;

use ashlar_layout::ids::{ClientId, RequestNo, Seq, Term};

use crate::client::{self, End};
use crate::disk::{self, Mark};
use crate::hash;
use crate::plan::{Plan, Seen, node};
use crate::world::World;

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Broken {
    /// Something committed is missing in the log of a later head, or of the one who said so.
    Lost,
    /// Two entries of one term and number.
    TwoValues,
    /// Two entries of one number were committed.
    Disagree,
    /// A look-up did not give the newest committed version.
    StaleRead,
    /// A read by witnesses gave less than what was committed when it began.
    StaleCache,
    /// A request was done twice.
    Twice,
    /// What was said to be durable is not, or not on enough devices.
    NotDurable,
    /// A change was refused and made, or refused for what is not so.
    RefusedYetMade,
    /// A replica stopped or panicked.
    Stopped,
    /// A deadline that was acted upon stays due.
    Timer,
    /// Something was acknowledged in a reign older than one that the device had promised itself to.
    OldPromise,
    /// A head took something for committed that no entry of its own reign covers.
    OldReign,
    /// Nothing can be committed any more, with at most f replicas away.
    Stuck,
}

/// Names of what must hold, in the order of [`Broken`].
pub const PROPERTIES: [&str; 13] = [
    "what is committed is never lost",
    "one value for each term and number",
    "committed logs agree",
    "reads are linearizable",
    "reads by witnesses are linearizable",
    "a request is done once at most",
    "what is acknowledged is durable",
    "a refused change is not made",
    "no replica stops",
    "deadlines pass",
    "promises are kept",
    "a head commits by entries of its own reign",
    "with f failures something can be committed",
];

impl World {
    /// Takes note of what a replica, in this reign and with this log, took for committed and does now.
    pub fn observe(
        &mut self,
        told: usize,
        (before, committed): (Seq, Seq),
        term: Term,
        (held, base): (&[Option<Mark>], Seq),
    ) {
        let newest = disk::at(held, committed);
        let reigns = node(term.head()) == told;
        if reigns && committed > before && newest.is_some_and(|mark| mark.term != term) {
            self.fail(Broken::OldReign);
        }
        let known = self.committed.len() as u64;
        for seq in base.0 + 1..=committed.0.min(known) {
            let held = disk::at(held, Seq(seq));
            if held.is_some_and(|held| held.term != self.committed[seq as usize - 1].term) {
                self.fail(Broken::Disagree);
            }
        }
        for seq in known + 1..=committed.0 {
            let Some(mark) = disk::at(held, Seq(seq)) else {
                return self.fail(Broken::Lost);
            };
            self.commit(mark);
        }
    }

    fn commit(&mut self, mark: Mark) {
        let same = |other: &Mark| (other.client, other.request) == (mark.client, mark.request);
        if mark.key != 0 && self.committed.iter().any(same) {
            self.fail(Broken::Twice);
        }
        Arc::make_mut(&mut self.committed).push(mark);
        for client in 0..self.clients.len() {
            for request in 0..self.clients[client].ends.len() {
                if self.clients[client].ends[request] == End::Refused {
                    self.check_not_made(client, request as u8);
                }
            }
        }
    }

    /// A client is told that its request is committed, as entry `seq`.
    pub fn check_committed(
        &mut self,
        plan: &Plan,
        told: usize,
        seq: Seq,
        (client, request): (ClientId, RequestNo),
        durable: Option<&Mark>,
    ) {
        let mark = self
            .committed
            .get((seq.0 as usize).wrapping_sub(1))
            .copied();
        let Some(mark) = mark.filter(|mark| (mark.client, mark.request) == (client, request))
        else {
            return self.fail(Broken::Lost);
        };
        let held = &self.disk(told).held;
        let founders = (1 << plan.founders) - 1;
        let chains = held
            .iter()
            .flatten()
            .map(|mark| mark.chain)
            .filter(|chain| *chain != 0);
        let chains: Vec<u8> = std::iter::once(founders).chain(chains).collect();
        // The next composition may have been put into the log in this very step.
        let enough = chains.iter().rev().take(2).any(|chain| {
            let has = |at: usize| {
                let held = disk::at(&self.disk(at).durable, seq);
                // Its own, as it was when it said so.
                let held = if at == told { durable.copied() } else { held };
                self.face(at).base >= seq || held.is_some_and(|held| held.term == mark.term)
            };
            let members = (0..self.nodes.len()).filter(|at| chain & 1 << at != 0);
            let n = members.clone().count();
            members.filter(|at| has(*at)).count() >= n - n.saturating_sub(1) / 2
        });
        // After a rot it may be fewer: that is one of the failures that are allowed for.
        if !self.is_rotten() && !enough {
            self.fail(Broken::NotDurable);
        }
    }

    /// A client is told that its request was refused for what it must find.
    pub fn check_refused(&mut self, plan: &Plan, client: usize, request: u8) {
        self.check_not_made(client, request);
        let wish = &plan.wishes[client][usize::from(request)];
        let version = self.version(wish.key);
        let holds = match wish.precondition {
            ashlar_layout::manifest::Precondition::None => true,
            ashlar_layout::manifest::Precondition::Absent => version.0 == 0,
            ashlar_layout::manifest::Precondition::Present => version.0 > 0,
            ashlar_layout::manifest::Precondition::Version(wanted) => version == wanted,
        };
        if holds {
            self.fail(Broken::RefusedYetMade);
        }
    }

    fn check_not_made(&mut self, client: usize, request: u8) {
        let wanted = (client::client_id(client), client::request_no(request));
        let made = self
            .committed
            .iter()
            .any(|mark| (mark.client, mark.request) == wanted);
        if made {
            self.fail(Broken::RefusedYetMade);
        }
    }

    /// The newest committed version of a key; 0: there is none.
    pub fn version(&self, key: &str) -> Seq {
        let key = hash::of(key);
        let newest = self.committed.iter().rev().find(|mark| mark.key == key);
        newest.map_or(Seq(0), |mark| mark.seq)
    }

    /// The name of what does not hold; if all holds, that nothing can be committed any more.
    pub fn first_broken(&self) -> &'static str {
        let first = self.broken.trailing_zeros().min(Broken::Stuck as u32);
        PROPERTIES[first as usize]
    }

    /// Whether a device has lost what was durable.
    pub fn is_rotten(&self) -> bool {
        let mut disks = (0..self.nodes.len()).map(|at| self.disk(at));
        disks.any(|disk| disk.lost || disk.records.iter().any(|record| record.rotten))
    }

    /// Looks at all replicas after a step.
    pub fn judge(&mut self, plan: &Plan) {
        let (mut heads, mut candidates) = (0, 0);
        for at in 0..self.nodes.len() {
            let face = self.nodes[at].face.clone();
            if !face.runs || face.term.0 == 0 || face.term.head() != crate::plan::device(at) {
                continue;
            }
            heads += u32::from(face.reigned);
            candidates += u32::from(!face.reigned && face.term.round() > 1);
            if !face.serving {
                if face.reigned {
                    self.saw(plan, Seen::Fenced);
                }
                continue;
            }
            if face.term.round() > 1 {
                self.saw(plan, Seen::Election);
            }
            if face.config > 1 && face.config % 2 == 1 {
                self.saw(plan, Seen::Change);
            }
            let held = &self.disk(at).held;
            let lost = self.committed.iter().any(|mark| {
                let held = disk::at(held, mark.seq);
                let known =
                    mark.seq <= face.base || held.is_some_and(|held| held.term == mark.term);
                mark.term < face.term && !known
            });
            if lost {
                self.fail(Broken::Lost);
            }
            for (key, found) in plan.keys().iter().zip(&face.look_ups) {
                if found.is_some_and(|(version, ..)| version != self.version(key)) {
                    self.fail(Broken::StaleRead);
                }
            }
        }
        if heads > 1 {
            self.saw(plan, Seen::TwoHeads);
        }
        if candidates > 1 {
            self.saw(plan, Seen::Race);
        }
        if !plan.desired.is_empty() && self.changes_race() {
            self.saw(plan, Seen::ChangeRace);
        }
    }

    /// Whether two reigns have each made a composition of the same number.
    fn changes_race(&self) -> bool {
        let chains = |at: usize| {
            let held = self.disk(at).held.iter().flatten();
            held.filter(|mark| mark.chain != 0)
        };
        (0..self.nodes.len()).any(|at| {
            chains(at).any(|mark| {
                let mut others = (0..at).flat_map(chains);
                others.any(|other| other.config == mark.config && other.term != mark.term)
            })
        })
    }
}

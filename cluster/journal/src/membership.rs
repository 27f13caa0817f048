//! The chain's composition changes: spares learn, one comes, one goes.
//!
//! Invariants:
//! - a composition counts from the moment that it is in a replica's log. The next one is put there
//!   only when the one before is committed, and an entry of the head's own reign as well;
//! - from an odd number to the next it goes by way of an even one, the union: whoever asks witnesses
//!   of the old odd composition meets one that holds the union, and says so by saying nothing;
//! - spares are fed like followers, but are counted for nothing;
//! - who is left out is fed until it was told that this is committed.

use std::collections::BTreeSet;

use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::time::Instant;

use crate::api::Action;
use crate::chain::Chain;
use crate::entry::{self, Mark};
use crate::mutants::mutant;
use crate::progress::Progress;
use crate::replica::{Replica, Role};

/// Members that a chain may have.
pub(crate) const MEMBERS_MAX: usize = 9;

impl Replica {
    pub(crate) fn on_desired(
        &mut self,
        now: Instant,
        mut members: Vec<DeviceNo>,
        out: &mut Vec<Action>,
    ) {
        let mut seen = BTreeSet::new();
        members.retain(|member| seen.insert(*member));
        if members.is_empty() || members.len() > MEMBERS_MAX {
            return;
        }
        self.desired = members;
        if self.role == Role::Head {
            self.enroll(now, out);
        }
    }

    /// Whether the cluster map wants it in the chain.
    pub(crate) fn wants(&self, device: DeviceNo) -> bool {
        self.desired.contains(&device)
    }

    /// The other members of the newest composition in the log.
    pub(crate) fn members_but_me(&self) -> Vec<DeviceNo> {
        let members = self.log.chain().members.iter();
        members
            .copied()
            .filter(|member| *member != self.config.me)
            .collect()
    }

    /// Everybody but this replica in the order of the chain; a head's.
    pub(crate) fn order_but_me(&self) -> Vec<DeviceNo> {
        self.log.chain().order(self.config.me).split_off(1)
    }

    /// A head watches members, spares, and whoever is leaving: no others.
    pub(crate) fn enroll(&mut self, now: Instant, out: &mut Vec<Action>) {
        let mut watched: BTreeSet<DeviceNo> = self.members_but_me().into_iter().collect();
        watched.extend(self.desired.iter().filter(|peer| **peer != self.config.me));
        watched.extend(&self.head.leaving);
        self.head.progress.retain(|peer, _| watched.contains(peer));
        let taught = self.head.teaching.keys().copied();
        let gone: Vec<DeviceNo> = taught.filter(|peer| !watched.contains(peer)).collect();
        for peer in gone {
            self.stop_teaching(peer);
        }
        for peer in watched {
            if self.head.progress.contains_key(&peer) {
                continue;
            }
            self.head.progress.insert(peer, Progress::new());
            if self.is_up(peer) {
                self.seal_again(now, peer, out);
            }
        }
    }

    /// Whether a spare has learned what there is to learn.
    fn has_learned(&self, spare: DeviceNo) -> bool {
        if spare == self.config.me {
            // A head that was left out, and is wanted again before it knew that it may go.
            return true;
        }
        let lag = self.config.limits.learned_lag;
        self.is_up(spare)
            && self.progress(spare).is_some_and(|progress| {
                progress.sealed && progress.known && progress.matched.0 + lag >= self.committed.0
            })
    }

    /// Takes the next step towards the members that are wanted, if it is time.
    pub(crate) fn recompose(&mut self, now: Instant, out: &mut Vec<Action>) {
        let waits = self.log.chain_seq() > self.committed;
        if !self.in_office() || self.head.stuck || self.desired.is_empty() || waits {
            return;
        }
        let me = self.config.me;
        let chain = self.log.chain();
        let mut next = chain.next(&self.desired, me, |spare| self.has_learned(spare));
        if mutant!(self, ConfigSkipsUnion) && chain.settled() {
            next = next.and_then(|union| union.next(&self.desired, me, |_| false));
        }
        if let Some(next) = next {
            self.put_chain(now, next, out);
        }
    }

    fn put_chain(&mut self, now: Instant, chain: Chain, out: &mut Vec<Action>) {
        let (decoded, mark) = (entry::recompose(&chain), Mark::Chain(chain.clone()));
        let Some(piece) = self.own_piece(&decoded, None, mark, out) else {
            return;
        };
        let leaving = self.members_but_me().into_iter();
        let leaving: Vec<DeviceNo> = leaving.filter(|member| !chain.contains(*member)).collect();
        self.head.leaving.extend(leaving);
        // The order of the chain is another one: all are fed directly until they keep up.
        let mut persist = Vec::new();
        self.write(std::slice::from_ref(&piece), &mut persist);
        self.enroll(now, out);
        self.unchain_all(now, out);
        self.feed_all(now, out);
        out.append(&mut persist);
        self.advance_commit(now);
    }

    /// A member that is left out, and knows that this is committed, has nothing more to do. It still
    /// answers: a head that had begun to take it in again cannot go on without it.
    pub(crate) fn retire(&mut self, now: Instant, out: &mut Vec<Action>) {
        let chain = self.log.chain();
        let me = self.config.me;
        let left_out = chain.settled() && !chain.contains(me) && self.log.chain_seq() > Seq(0);
        let committed = self.log.chain_seq() <= self.committed && self.log.is_whole();
        let unwanted = !self.desired.is_empty() && !self.wants(me);
        let may_go = left_out && committed && unwanted && self.role != Role::Replaying;
        if may_go == self.retired || self.stopped.is_some() {
            return;
        }
        self.retired = may_go;
        if !may_go {
            return;
        }
        if self.role == Role::Head {
            self.hand_over(now, "the head left the chain", out);
        }
        out.push(Action::Retired);
    }
}

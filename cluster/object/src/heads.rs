//! Who is believed to be the head of each partition's chain.
//!
//! Belief is a matter of speed, never of truth: a change names the reign that it is meant for, a head
//! that is out of office refuses, so a wrong belief costs a round trip.
//!
//! Invariants:
//! - a reign is believed in only because its own head said that it is in office, and never after a
//!   newer one did;
//! - what a doubt takes away, only such a word gives back;
//! - the members of a composition are those that a head in office named;
//! - a chain is polled by one operation at a time, at most every [`POLL_MIN`], however many wait;
//! - memory grows with the partitions that were asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, PartitionId, Seq, Term};
use ashlar_layout::message::ChainView;
use ashlar_layout::time::Instant;

/// Between two polls of a chain in which nobody serves.
pub const POLL_MIN: Duration = Duration::from_millis(5);
/// The same, once nobody has served for [`EAGER`].
pub const POLL_MAX: Duration = Duration::from_millis(50);
/// So long a chain is polled as often as may be: failing over takes less.
const EAGER: Duration = Duration::from_secs(2);

/// A head in office, as it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Its term.
    pub term: Term,
    /// The head's device.
    pub head: DeviceNo,
}

#[derive(Debug, Default)]
struct Belief {
    /// The newest reign that its head said it serves in.
    term: Term,
    /// Nothing was found to the contrary since.
    serves: bool,
    /// When its head last said so.
    confirmed: Option<Instant>,
    config: u64,
    members: Vec<DeviceNo>,
    /// A newer composition was heard of than `members` are of.
    outdated: bool,
    /// The last committed entry that this client was told of.
    told: Seq,
    polled: Option<Instant>,
    /// Since when nobody is believed to serve.
    seeking: Option<Instant>,
}

/// Beliefs about the heads of partitions.
#[derive(Debug, Default)]
pub struct Heads {
    by: BTreeMap<PartitionId, Belief>,
}

impl Heads {
    /// The reign that is believed to last.
    pub fn reign(&self, partition: PartitionId) -> Option<Reign> {
        let belief = self.by.get(&partition).filter(|b| b.serves)?;
        Some(Reign {
            term: belief.term,
            head: belief.term.head(),
        })
    }

    /// When its head last said that it is in office.
    pub fn confirmed(&self, partition: PartitionId) -> Option<Instant> {
        self.by.get(&partition)?.confirmed
    }

    /// The chain's composition and its members, if they are known.
    pub fn members(&self, partition: PartitionId) -> Option<(u64, &[DeviceNo])> {
        let belief = self.by.get(&partition).filter(|b| !b.outdated)?;
        (belief.config > 0).then_some((belief.config, belief.members.as_slice()))
    }

    /// All devices that were ever named as members of the newest composition.
    pub(crate) fn last_members(&self, partition: PartitionId) -> &[DeviceNo] {
        self.by.get(&partition).map_or(&[], |b| &b.members)
    }

    /// Whether the head is to be asked for the members, for they have changed.
    pub(crate) fn wants_members(&self, partition: PartitionId) -> bool {
        self.by
            .get(&partition)
            .is_none_or(|b| b.outdated || b.config == 0)
    }

    /// The last committed entry of this partition that this client was told of.
    pub fn told(&self, partition: PartitionId) -> Seq {
        self.by.get(&partition).map(|b| b.told).unwrap_or_default()
    }

    /// An answer tells of a committed entry of this partition.
    pub fn tell(&mut self, partition: PartitionId, seq: Seq) {
        let belief = self.by.entry(partition).or_default();
        belief.told = belief.told.max(seq);
    }

    /// An answer of the head names the composition.
    pub fn works_with(&mut self, partition: PartitionId, config: u64) {
        let belief = self.by.entry(partition).or_default();
        belief.outdated |= belief.config != config;
    }

    /// What a replica says of its chain.
    pub fn heard(
        &mut self,
        now: Instant,
        partition: PartitionId,
        from: DeviceNo,
        view: &ChainView,
    ) {
        let belief = self.by.entry(partition).or_default();
        // Whoever says it: what is committed stays so.
        belief.told = belief.told.max(view.committed);
        let in_office = view.serving && view.term.head() == from && view.term.0 > 0;
        // A follower that knows of a newer reign than its head's is no reason to leave that head: who
        // wants to be one is not one yet, and may never be.
        if !in_office || view.term < belief.term {
            return;
        }
        belief.term = view.term;
        belief.serves = true;
        belief.confirmed = Some(now);
        belief.seeking = None;
        belief.config = view.config;
        belief.members.clone_from(&view.members);
        belief.outdated = false;
    }

    /// The head of this reign said, or showed, that it does not serve.
    pub fn doubt(&mut self, now: Instant, partition: PartitionId, term: Term) {
        if let Some(belief) = self.by.get_mut(&partition)
            && belief.serves
            && belief.term == term
        {
            belief.serves = false;
            belief.seeking = Some(now);
        }
    }

    /// Takes the turn to poll the chain; else says when there is the next one.
    pub fn turn(&mut self, now: Instant, partition: PartitionId) -> Result<(), Instant> {
        let belief = self.by.entry(partition).or_default();
        let since = *belief.seeking.get_or_insert(now);
        let eager = now < since + EAGER;
        let pause = if eager { POLL_MIN } else { POLL_MAX };
        match belief.polled.map(|polled| polled + pause) {
            Some(at) if at > now => Err(at),
            _ => {
                belief.polled = Some(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(3);
    const A: DeviceNo = DeviceNo(1);
    const B: DeviceNo = DeviceNo(2);

    fn at(millis: u64) -> Instant {
        Instant(millis * 1_000_000)
    }

    fn view(round: u32, head: DeviceNo, serving: bool) -> ChainView {
        ChainView {
            term: Term::new(round, head),
            serving,
            committed: Seq(u64::from(round)),
            config: 1,
            members: vec![A, B],
        }
    }

    #[test]
    fn only_the_head_itself_makes_believe() {
        let mut heads = Heads::default();
        heads.heard(at(0), P, B, &view(4, A, false));
        heads.heard(at(0), P, B, &view(4, A, true));
        assert_eq!(heads.reign(P), None);
        assert_eq!(heads.members(P), None);
        assert_eq!(heads.told(P), Seq(4), "what is committed anybody may tell");
        heads.heard(at(0), P, A, &view(4, A, true));
        let term = Term::new(4, A);
        assert_eq!(heads.reign(P), Some(Reign { term, head: A }));
        assert_eq!(heads.members(P), Some((1, &[A, B][..])));
    }

    #[test]
    fn an_older_reign_does_not_come_back() {
        let mut heads = Heads::default();
        heads.heard(at(0), P, B, &view(5, B, true));
        heads.heard(at(0), P, A, &view(4, A, true));
        assert_eq!(heads.reign(P).map(|r| r.head), Some(B));
        heads.doubt(at(1), P, Term::new(5, B));
        heads.heard(at(2), P, A, &view(4, A, true));
        assert_eq!(heads.reign(P), None);
        heads.heard(at(3), P, B, &view(5, B, true));
        assert_eq!(heads.reign(P).map(|r| r.head), Some(B));
        // A doubt about another reign than the one that lasts.
        heads.doubt(at(4), P, Term::new(4, A));
        assert!(heads.reign(P).is_some());
    }

    #[test]
    fn one_polls_for_all_and_less_often_in_the_end() {
        let mut heads = Heads::default();
        assert_eq!(heads.turn(at(0), P), Ok(()));
        assert_eq!(heads.turn(at(1), P), Err(at(5)));
        assert_eq!(heads.turn(at(5), P), Ok(()));
        let mut polls = 0;
        for t in 6..20_000 {
            polls += u32::from(heads.turn(at(t), P).is_ok());
        }
        assert!((700..900).contains(&polls), "{polls}");
        // A chain that served, and does not any more, is looked at at once.
        heads.heard(at(20_001), P, A, &view(1, A, true));
        heads.doubt(at(30_000), P, Term::new(1, A));
        assert_eq!(heads.turn(at(30_000), P), Ok(()));
        assert_eq!(heads.turn(at(30_001), P), Err(at(30_005)));
    }

    #[test]
    fn another_composition_makes_the_members_unknown() {
        let mut heads = Heads::default();
        heads.heard(at(0), P, A, &view(4, A, true));
        heads.works_with(P, 1);
        assert!(heads.members(P).is_some());
        heads.works_with(P, 3);
        assert!(heads.members(P).is_none() && heads.wants_members(P));
        let newer = ChainView {
            config: 3,
            ..view(4, A, true)
        };
        heads.heard(at(1), P, A, &newer);
        assert_eq!(heads.members(P).map(|(config, _)| config), Some(3));
    }
}

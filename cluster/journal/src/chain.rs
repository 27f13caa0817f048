//! The composition of a chain: its members, their order, and how many make a quorum.
//!
//! Invariants:
//! - any two quorums of one composition have a member in common, and so have any two of adjacent
//!   ones, which differ by one member at most;
//! - the order of the chain is the head, then the others in the order of the list, as in a ring.

use ashlar_layout::ids::DeviceNo;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chain {
    /// Counts up; odd: settled.
    pub(crate) config: u64,
    pub(crate) members: Vec<DeviceNo>,
}

impl Chain {
    pub(crate) fn contains(&self, device: DeviceNo) -> bool {
        self.members.contains(&device)
    }

    pub(crate) fn settled(&self) -> bool {
        self.config % 2 == 1
    }

    /// How many members hold what is committed, and how many promise a reign: n − f.
    pub(crate) fn quorum(&self) -> usize {
        let n = self.members.len();
        n - n.saturating_sub(1) / 2
    }

    /// The head, and the others as they follow it: nothing is gathered, for it is asked for with each message.
    fn ring(&self, head: DeviceNo) -> impl Iterator<Item = DeviceNo> + '_ {
        let at = self.members.iter().position(|member| *member == head);
        let behind = at.map_or(0, |at| at + 1);
        let (before, after) = self.members.split_at(behind);
        let ring = after.iter().chain(before);
        let others = ring.copied().filter(move |member| *member != head);
        std::iter::once(head).chain(others)
    }

    /// The same, gathered.
    pub(crate) fn order(&self, head: DeviceNo) -> Vec<DeviceNo> {
        self.ring(head).collect()
    }

    /// How far `device` is behind the head; the last place if it is no member.
    pub(crate) fn rank(&self, head: DeviceNo, device: DeviceNo) -> usize {
        let at = self.ring(head).position(|member| member == device);
        at.unwrap_or_else(|| self.ring(head).count())
    }

    /// Whom `device` passes on what the head orders.
    pub(crate) fn successor(&self, head: DeviceNo, device: DeviceNo) -> Option<DeviceNo> {
        let mut ring = self.ring(head);
        ring.find(|member| *member == device)?;
        ring.next()
    }

    /// The next composition on the way to `desired`; None if there is nothing to do (yet). `ready`
    /// tells which spares have learned the log.
    pub(crate) fn next(
        &self,
        desired: &[DeviceNo],
        head: DeviceNo,
        ready: impl Fn(DeviceNo) -> bool,
    ) -> Option<Chain> {
        let config = self.config + 1;
        // The head goes last: its going costs an election.
        let surplus = |chain: &Chain| {
            let out = |member: &&DeviceNo| !desired.contains(member);
            let mut surplus: Vec<DeviceNo> = chain.members.iter().filter(out).copied().collect();
            surplus.sort_by_key(|member| *member == head);
            surplus.first().copied()
        };
        let mut members = self.members.clone();
        if !self.settled() {
            if let Some(out) = surplus(self).filter(|_| members.len() > 1) {
                members.retain(|member| *member != out);
            }
            return Some(Chain { config, members });
        }
        let wanted = |device: &&DeviceNo| !self.contains(**device);
        let mut missing = desired.iter().filter(wanted).peekable();
        let some_missing = missing.peek().is_some();
        match missing.find(|device| ready(**device)) {
            Some(new) => members.push(*new),
            // Nobody leaves before whoever comes instead has learned.
            None if some_missing && members.len() <= desired.len() => return None,
            None if surplus(self).is_none() => return None,
            None => {}
        }
        Some(Chain { config, members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(config: u64, members: &[u32]) -> Chain {
        Chain {
            config,
            members: members.iter().copied().map(DeviceNo).collect(),
        }
    }

    fn devices(numbers: &[u32]) -> Vec<DeviceNo> {
        numbers.iter().copied().map(DeviceNo).collect()
    }

    #[test]
    fn quorums_meet() {
        for n in 1..=9u32 {
            let numbers: Vec<u32> = (1..=n).collect();
            let quorum = chain(1, &numbers).quorum();
            assert!(2 * quorum > numbers.len());
            let larger: Vec<u32> = (1..=n + 1).collect();
            assert!(quorum + chain(2, &larger).quorum() > larger.len());
        }
        let quorum = |n: u32| chain(1, &(0..n).collect::<Vec<_>>()).quorum();
        assert_eq!([1, 2, 3, 4, 5].map(quorum), [1, 2, 2, 3, 3]);
    }

    #[test]
    fn places_are_those_of_the_order() {
        for n in 0..=5u32 {
            let numbers: Vec<u32> = (1..=n).collect();
            let chain = chain(1, &numbers);
            for (head, device) in (0..=n + 1).flat_map(|head| (0..=n + 1).map(move |it| (head, it)))
            {
                let (head, device) = (DeviceNo(head), DeviceNo(device));
                let order = chain.order(head);
                let at = order.iter().position(|member| *member == device);
                assert_eq!(chain.rank(head, device), at.unwrap_or(order.len()));
                let next = at.and_then(|at| order.get(at + 1)).copied();
                assert_eq!(
                    chain.successor(head, device),
                    next,
                    "{head} {device} of {n}"
                );
            }
        }
    }

    #[test]
    fn the_order_is_a_ring_that_begins_with_the_head() {
        let three = chain(1, &[4, 7, 2]);
        let head = DeviceNo(7);
        assert_eq!(three.order(head), devices(&[7, 2, 4]));
        assert_eq!(three.successor(head, DeviceNo(2)), Some(DeviceNo(4)));
        assert_eq!(three.successor(head, DeviceNo(4)), None);
        assert_eq!(three.rank(head, DeviceNo(4)), 2);
        assert_eq!(three.order(DeviceNo(9)), devices(&[9, 4, 7, 2]));
        assert_eq!(three.successor(head, DeviceNo(9)), None);
    }

    #[test]
    fn one_comes_then_one_goes() {
        let three = chain(1, &[1, 2, 3]);
        let head = DeviceNo(1);
        let desired = devices(&[2, 4, 5]);
        let next = |chain: &Chain, ready| chain.next(&desired, head, |_| ready);
        assert_eq!(next(&three, false), None, "nobody has learned yet");
        let mut chain = three;
        let mut seen = Vec::new();
        while let Some(after) = next(&chain, true) {
            assert!(after.members.len() >= 3 && after.config == chain.config + 1);
            chain = after;
            seen.push(chain.members.clone());
        }
        let expected = [
            [1, 2, 3, 4].as_slice(),
            &[1, 2, 4],
            &[1, 2, 4, 5],
            &[2, 4, 5],
        ];
        assert_eq!(seen, expected.map(devices));
        assert!(chain.settled());
    }

    #[test]
    fn a_chain_grows_and_shrinks() {
        let mut grown = chain(1, &[1]);
        let desired = devices(&[1, 2, 3]);
        while let Some(after) = grown.next(&desired, DeviceNo(1), |_| true) {
            grown = after;
        }
        assert_eq!((grown.config, grown.members.len()), (5, 3));
        while let Some(after) = grown.next(&devices(&[3]), DeviceNo(1), |_| true) {
            grown = after;
        }
        assert_eq!((grown.config, grown.members), (9, devices(&[3])));
    }
}

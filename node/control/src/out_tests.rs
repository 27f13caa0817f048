//! Which devices are out, decision by decision, and under random histories.

use std::collections::BTreeSet;
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, DomainLevel, History, MapChange};
use ashlar_layout::ids::{DeviceId, DeviceNo, NodeId};
use ashlar_layout::time::Instant;
use proptest::prelude::*;

use crate::out::OutLimits;
use crate::partitions::PartitionLimits;
use crate::policy::{Patience, Watchman};
use crate::testing;

const PATIENCE: Patience = Patience {
    away_after: Duration::from_secs(2),
    // Chains are another matter.
    replace_after: Duration::from_secs(1_000_000),
    out: OutLimits::DEFAULT,
    partitions: PartitionLimits::DEFAULT,
};

/// A leader, its map, and nodes that beat once a second, each with a device of its number.
struct Office {
    now: u64,
    map: ClusterMap,
    man: Watchman,
    patience: Patience,
    /// Nodes that are silent,
    silent: BTreeSet<u32>,
    /// devices that do not serve,
    down: BTreeSet<u32>,
    /// and nodes that say nothing of their devices.
    older: BTreeSet<u32>,
    /// What was decided, and when.
    made: Vec<(u64, MapChange)>,
}

fn at(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000_000)
}

fn devices(numbers: &[u32]) -> Vec<DeviceNo> {
    numbers.iter().map(|no| DeviceNo(*no)).collect()
}

fn out(numbers: &[u32]) -> MapChange {
    let devices = devices(numbers);
    MapChange::MarkOut { devices }
}

fn back(numbers: &[u32]) -> MapChange {
    let devices = devices(numbers);
    MapChange::MarkIn { devices }
}

impl Office {
    fn of(map: ClusterMap, patience: Patience) -> Office {
        Office {
            now: 100,
            man: Watchman::new(patience, at(100)),
            map,
            patience,
            silent: BTreeSet::new(),
            down: BTreeSet::new(),
            older: BTreeSet::new(),
            made: Vec::new(),
        }
    }

    /// So many nodes in three zones.
    fn new(nodes: u32) -> Office {
        Office::of(testing::map(nodes, 3), PATIENCE)
    }

    /// Another leader takes office.
    fn elect(&mut self) {
        self.man = Watchman::new(self.patience, at(self.now));
    }

    fn second(&mut self) {
        self.now += 1;
        for node in &self.map.nodes {
            if self.silent.contains(&node.id.0) {
                continue;
            }
            let ours = self.map.devices.iter().filter(|it| it.node == node.id);
            let serving = ours.filter(|it| !self.down.contains(&it.no.0));
            let serving: Vec<DeviceNo> = serving.map(|it| it.no).collect();
            let serving = (!self.older.contains(&node.id.0)).then_some(&serving[..]);
            let (now, map) = (at(self.now), &self.map);
            self.man.hear(now, map, node.id, Vec::new(), serving);
        }
        self.man.forget(&self.map);
        if let Some(change) = self.man.decide(at(self.now), &self.map) {
            self.map = change.apply(&self.map, &History::default()).unwrap();
            self.made.push((self.now, change));
        }
    }

    /// What is decided in so many seconds.
    fn pass(&mut self, seconds: u64) -> Vec<MapChange> {
        self.made.clear();
        (0..seconds).for_each(|_| self.second());
        self.made.iter().map(|(_, change)| change.clone()).collect()
    }
}

#[test]
fn a_device_goes_out_after_its_time_and_comes_in_when_it_serves() {
    let mut office = Office::new(9);
    assert_eq!(office.pass(100), []);
    // Its node is silent,
    office.silent.insert(5);
    assert_eq!(office.pass(29), []);
    assert_eq!(office.pass(2), [out(&[5])]);
    assert_eq!((office.pass(500), office.man.held()), (vec![], None));
    office.silent.clear();
    assert_eq!(office.pass(5), []);
    assert_eq!(office.pass(1), [back(&[5])]);
    // or it is itself what does not serve.
    office.down.insert(6);
    assert_eq!(office.pass(30), []);
    assert_eq!(office.pass(1), [out(&[6])]);
    // A node that starts again and again without it does not begin the wait anew; one moment of serving does.
    office.down.insert(7);
    for _ in 0..3 {
        office.silent.insert(7);
        assert_eq!(office.pass(6), []);
        office.silent.clear();
        assert_eq!(office.pass(3), []);
    }
    assert_eq!(office.pass(4), [out(&[7])]);
    office.down.extend([6, 7]);
    office.down.remove(&7);
    assert_eq!(office.pass(6), [back(&[7])]);
    for _ in 0..5 {
        office.down.insert(7);
        assert_eq!(office.pass(29), []);
        office.down.remove(&7);
        assert_eq!(office.pass(1), []);
    }
    let all: BTreeSet<DeviceNo> = devices(&[6]).into_iter().collect();
    assert_eq!(
        (
            &office.map.out,
            office.man.away(at(office.now), &office.map)
        ),
        (&all, all.clone())
    );
}

#[test]
fn with_too_many_away_none_goes_out_and_it_says_why() {
    // A zone has three of nine, a quarter of them is two.
    let mut office = Office::new(9);
    office.pass(10);
    office.silent.extend([1, 4, 7]);
    assert_eq!(office.pass(5000), []);
    let why = office.man.held().unwrap().to_owned();
    assert!(why.contains("3 of 9") && why.contains("a person"), "{why}");
    // One is back: the others may be on their way as well, however long it was.
    office.silent.remove(&4);
    assert_eq!(office.pass(29), []);
    assert_eq!(office.pass(1), [out(&[1, 7])]);
    assert_eq!(office.man.held(), None);
    // What is out counts as well, whether it is away or not.
    office.silent.insert(2);
    office.silent.remove(&1);
    assert_eq!(office.pass(4), []);
    assert!(office.man.held().unwrap().contains("3 of 9"));
    assert_eq!(office.pass(2), [back(&[1])]);
    assert_eq!(office.pass(40), [out(&[2])]);
    // All are silent: it is the leader that is cut off.
    office.silent.extend(1..=9);
    assert_eq!(office.pass(5000), []);
    assert_eq!(office.map.out, devices(&[2, 7]).into_iter().collect());
}

#[test]
fn as_many_may_be_out_as_was_said() {
    for (most, some) in [(0, false), (2, false), (3, true)] {
        let mut patience = PATIENCE;
        patience.out.most = Some(most);
        let mut office = Office::of(testing::map(6, 3), patience);
        office.pass(10);
        office.silent.extend([1, 2, 3]);
        let made = office.pass(100);
        assert_eq!(made, if some { vec![out(&[1, 2, 3])] } else { vec![] });
        assert_eq!(office.man.held().is_some(), !some);
    }
    // All devices of a host, which is a domain.
    let mut map = testing::map(9, 3);
    map.domain = DomainLevel::Host;
    let mut second = map.devices[7].clone();
    (second.no, second.id) = (DeviceNo(10), DeviceId([10; 16]));
    map.devices.push(second);
    let mut office = Office::of(map, PATIENCE);
    office.pass(10);
    office.silent.insert(8);
    assert_eq!(office.pass(100), [out(&[8, 10])]);
}

#[test]
fn only_what_a_leader_has_watched_itself_counts() {
    let mut office = Office::new(6);
    office.silent.insert(5);
    assert_eq!(office.pass(29), []);
    office.elect();
    assert_eq!(office.pass(29), []);
    office.elect();
    assert_eq!(office.pass(31), [out(&[5])]);
    // What is out stays so, and the next one brings it in.
    office.elect();
    assert_eq!(office.pass(100), []);
    office.elect();
    office.silent.clear();
    assert_eq!(office.pass(6), [back(&[5])]);
    // Whoever stood still has not watched: the first one to be heard again makes nobody else dead.
    office.pass(10);
    office.now += 1000;
    office.silent.insert(3);
    assert_eq!(office.pass(29), []);
    assert_eq!(office.pass(2), [out(&[3])]);
}

/// A node that joins is started after it is in the map: it was not silent before.
#[test]
fn who_joins_is_waited_for() {
    let mut office = Office::new(9);
    office.pass(3600);
    let (node, devices) = testing::node(10, 3);
    office.map.nodes.push(node);
    office.map.devices.extend(devices);
    office.silent.insert(10);
    assert_eq!(office.pass(29), []);
    office.silent.clear();
    assert_eq!(office.pass(100), []);
}

#[test]
fn older_nodes_keep_all_in_and_are_no_less_there() {
    let mut office = Office::new(9);
    office.older.extend(1..=9);
    office.down.insert(2);
    assert_eq!((office.pass(100), office.man.held()), (vec![], None));
    office.silent.insert(2);
    assert_eq!(office.pass(100), []);
    let why = office.man.held().unwrap().to_owned();
    assert!(why.contains("node 1 does not say"), "{why}");
    // Silent ones do not keep anybody.
    office.older = [2, 3].into();
    assert_eq!(office.pass(100), []);
    office.older = [2].into();
    assert_eq!(office.pass(29), []);
    assert_eq!(office.pass(2), [out(&[2])]);
    // It comes back as it was.
    office.silent.clear();
    assert_eq!(office.pass(10), [back(&[2])]);
}

#[test]
fn what_comes_and_goes_does_not_change_the_map_all_the_time() {
    let mut office = Office::new(6);
    let mut changes = 0;
    for _ in 0..600 {
        office.down.insert(4);
        changes += office.pass(31).len();
        office.down.clear();
        changes += office.pass(6).len();
    }
    assert!((2..=30).contains(&changes), "{changes}");
    // After an hour in which it served it is one like any other.
    office.pass(2 * 60 * 60);
    assert!(office.map.out.is_empty());
    office.down.insert(4);
    assert_eq!(office.pass(31), [out(&[4])]);
    office.down.clear();
    assert_eq!(office.pass(6), [back(&[4])]);
}

#[test]
fn who_leaves_is_not_waited_for() {
    let mut office = Office::new(9);
    let (node, devices) = testing::node(10, 3);
    office.map.nodes.push(node);
    office.map.devices.extend(devices);
    office.map.draining = vec![NodeId(10)];
    office.pass(10);
    office.silent.extend([3, 10]);
    assert_eq!(office.pass(40), [out(&[3, 10])]);
    let leave = MapChange::RemoveNode { node: NodeId(10) };
    office.map = leave.apply(&office.map, &History::default()).unwrap();
    assert_eq!(office.map.out, [DeviceNo(3)].into());
    office.silent.remove(&3);
    assert_eq!(office.pass(10), [back(&[3])]);
}

#[test]
fn a_beat_that_does_not_come_is_no_break() {
    let mut office = Office::new(9);
    office.silent.insert(7);
    assert_eq!(office.pass(40), [out(&[7])]);
    office.silent.remove(&7);
    assert_eq!(office.pass(5), []);
    office.silent.insert(7);
    assert_eq!(office.pass(1), [back(&[7])]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever goes away and comes back, under whatever leaders: what is marked out was away for all of the time, in
    /// the eyes of one leader, and no more are out or away at that moment than may be; what is marked in serves.
    #[test]
    fn marks_are_earned(
        turns in prop::collection::vec((0u32..4, 1u32..10, 1u64..50), 1..60),
    ) {
        let mut office = Office::new(9);
        let (mut gone, mut elected) = ([None::<u64>; 10], office.now);
        let mut served = [office.now; 10];
        for (what, no, seconds) in turns {
            match what {
                0 => { office.silent.insert(no); }
                1 => { office.down.insert(no); }
                2 => { office.silent.remove(&no); office.down.remove(&no); }
                _ if no == 9 => { office.elect(); elected = office.now; }
                _ => {}
            }
            for _ in 0..seconds {
                let before = office.map.out.clone();
                for no in 1..10u32 {
                    let away = office.silent.contains(&no) || office.down.contains(&no);
                    let at = &mut gone[no as usize];
                    match (away, *at) {
                        (true, None) => *at = Some(office.now),
                        (false, _) => *at = None,
                        _ => {}
                    }
                    // One beat that does not come is no break.
                    let silent = at.is_some_and(|since| office.now + 1 > since + 2);
                    if office.down.contains(&no) || silent {
                        served[no as usize] = office.now + 1;
                    }
                }
                office.made.clear();
                office.second();
                match office.made.pop() {
                    Some((now, MapChange::MarkOut { devices })) => {
                        for no in &devices {
                            let since = gone[no.0 as usize].expect("it is away").max(elected);
                            prop_assert!(now - since >= 30);
                        }
                        prop_assert!(office.map.out.len() <= 2);
                        let away = office.man.away(at(now), &office.map);
                        prop_assert!(away.union(&before).count() <= 2);
                    }
                    Some((now, MapChange::MarkIn { devices })) => {
                        for no in &devices {
                            prop_assert!(now >= served[no.0 as usize] + 5);
                        }
                    }
                    Some(other) => prop_assert!(false, "{:?}", other),
                    None => {}
                }
            }
        }
    }
}

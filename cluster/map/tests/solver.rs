//! What the solver gives, checked from outside: against the rules, by brute force.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use ashlar_cluster_map::{
    Class, ClusterMap, Core, Device, DomainLevel, Domains, Ending, MapError, Node, SolveError,
    solve,
};
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId, PartitionId};
use proptest::prelude::*;

/// A map of nodes with so many devices each; node i stands in rack i % racks.
fn map(class: &str, level: DomainLevel, devices_per_node: &[u32], racks: usize) -> ClusterMap {
    let mut nodes = Vec::new();
    let mut devices = Vec::new();
    for (i, count) in devices_per_node.iter().enumerate() {
        let id = NodeId(i as u32 + 1);
        let rack = (i % racks.max(1)).to_string();
        nodes.push(Node {
            id,
            domains: Domains {
                rack,
                ..Domains::default()
            },
            cores: vec![Core {
                address: format!("127.0.0.1:{}", 4000 + i),
            }],
        });
        for _ in 0..*count {
            let no = devices.len() as u32 + 1;
            let mut name = [0; 16];
            name[..4].copy_from_slice(&no.to_le_bytes());
            devices.push(Device {
                no: DeviceNo(no),
                id: DeviceId(name),
                node: id,
                core: 0,
                size: 1 << 30,
            });
        }
    }
    ClusterMap {
        nodes,
        devices,
        ..ClusterMap::bare(ClusterId([7; 16]), class.parse().unwrap(), 4 << 20, level)
    }
}

fn solved(class: &str, level: DomainLevel, devices_per_node: &[u32], racks: usize) -> ClusterMap {
    let mut map = map(class, level, devices_per_node, racks);
    solve(&mut map, 1).unwrap();
    map.validate().unwrap();
    map
}

/// How often each device stands at each place of the groups of a class.
fn roles(map: &ClusterMap, class: Class) -> BTreeMap<(DeviceNo, usize), u32> {
    let mut roles = BTreeMap::new();
    for group in map.groups.iter().filter(|g| g.class == class) {
        for (place, device) in group.devices.iter().enumerate() {
            *roles.entry((*device, place)).or_default() += 1;
        }
    }
    roles
}

/// Every subset of `n` out of `items`.
fn subsets(items: &[DeviceNo], n: usize) -> Vec<BTreeSet<DeviceNo>> {
    if n == 0 {
        return vec![BTreeSet::new()];
    }
    let mut all = Vec::new();
    for (i, item) in items.iter().enumerate() {
        for mut rest in subsets(&items[i + 1..], n - 1) {
            rest.insert(*item);
            all.push(rest);
        }
    }
    all
}

#[test]
fn any_healthy_devices_of_a_rig_can_take_a_new_write() {
    for nodes in 6..=8 {
        let map = solved("4+2", DomainLevel::Host, &vec![1; nodes], 1);
        let all: Vec<DeviceNo> = map.devices.iter().map(|d| d.no).collect();
        for k in 1..=4u8 {
            let class = Class { k, m: 2 };
            let sets: BTreeSet<BTreeSet<DeviceNo>> = map
                .groups
                .iter()
                .filter(|g| g.class == class)
                .map(|g| g.devices.iter().copied().collect())
                .collect();
            for healthy in subsets(&all, class.shards()) {
                assert!(
                    sets.contains(&healthy),
                    "{nodes} nodes: no {class} group on {healthy:?}"
                );
            }
        }
    }
}

#[test]
fn data_and_parity_are_even() {
    for (class, nodes) in [
        ("4+2", 6),
        ("4+2", 12),
        ("4+2", 40),
        ("8+4", 30),
        ("1+2", 100),
    ] {
        let map = solved(class, DomainLevel::Host, &vec![1; nodes], 1);
        let roles = roles(&map, map.class);
        let counts: Vec<u32> = map
            .devices
            .iter()
            .flat_map(|d| (0..map.class.shards()).map(move |place| (d.no, place)))
            .map(|key| roles.get(&key).copied().unwrap_or(0))
            .collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        let mean = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        assert!(
            f64::from(most - least) <= (0.8 * mean).max(3.0),
            "{class} over {nodes}: from {least} to {most}, mean {mean}"
        );
        let mut load: BTreeMap<DeviceNo, u32> = BTreeMap::new();
        for ((device, _), count) in &roles {
            *load.entry(*device).or_default() += count;
        }
        let (least, most) = (load.values().min().unwrap(), load.values().max().unwrap());
        let mean = f64::from(load.values().sum::<u32>()) / load.len() as f64;
        assert!(
            f64::from(most - least) <= (0.1 * mean).max(2.0),
            "{class} over {nodes}: a device is in {least} to {most} groups, mean {mean}"
        );
    }
}

#[test]
fn a_lost_device_is_rebuilt_by_all_others() {
    for (class, nodes) in [("4+2", 6), ("4+2", 12), ("4+2", 50), ("8+4", 30)] {
        let map = solved(class, DomainLevel::Host, &vec![1; nodes], 1);
        let mut partners: BTreeMap<DeviceNo, BTreeSet<DeviceNo>> = BTreeMap::new();
        for group in map.groups.iter().filter(|g| g.class == map.class) {
            for device in &group.devices {
                partners.entry(*device).or_default().extend(&group.devices);
            }
        }
        for (device, partners) in partners {
            assert_eq!(
                partners.len(),
                nodes,
                "{class} over {nodes}: partners of {device}"
            );
        }
    }
}

#[test]
fn the_number_of_copysets_is_bounded() {
    for nodes in [100, 400] {
        let map = solved("4+2", DomainLevel::Host, &vec![1; nodes], 1);
        let sets: BTreeSet<BTreeSet<DeviceNo>> = map
            .groups
            .iter()
            .filter(|g| g.class == map.class)
            .map(|g| g.devices.iter().copied().collect())
            .collect();
        assert!(sets.len() <= 2048, "{nodes} nodes: {} sets", sets.len());
        assert!(
            map.groups.len() <= 4096,
            "{nodes} nodes: {} groups",
            map.groups.len()
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_and_what_fits_is_said() {
    let cases: [(&str, &[u32], Option<&str>); 6] = [
        ("4+2", &[1, 1, 1], Some("1+2")),
        ("4+2", &[1, 1, 1, 1, 1], Some("3+2")),
        ("4+2", &[2, 2, 2], Some("1+2")),
        ("4+2", &[1, 1], Some("1+1")),
        ("4+2", &[8], None),
        ("8+4", &[2, 2, 2, 2], Some("4+4")),
    ];
    for (class, devices, want) in cases {
        let mut map = map(class, DomainLevel::Host, devices, 1);
        let before = map.clone();
        let error = solve(&mut map, 3).unwrap_err();
        let SolveError::ClassDoesNotFit { fits, .. } = &error else {
            panic!("{class} on {devices:?}: {error}");
        };
        assert_eq!(
            fits.map(|c| c.to_string()).as_deref(),
            want,
            "{class} on {devices:?}"
        );
        if let Some(want) = want {
            assert!(error.to_string().contains(want), "{error}");
        }
        assert_eq!(map, before, "an error leaves the map as it was");
    }
    let mut empty = map("4+2", DomainLevel::Host, &[], 1);
    assert_eq!(solve(&mut empty, 3), Err(SolveError::NoDevices));
    // Two racks hold the shards, but not three replicas of a journal.
    let mut racks = map("1+3", DomainLevel::Rack, &[1, 1, 1, 1], 2);
    assert!(matches!(
        solve(&mut racks, 3),
        Err(SolveError::ChainDoesNotFit {
            level: DomainLevel::Rack,
            domains: 2
        })
    ));
}

#[test]
fn a_chain_is_three_where_three_nodes_are() {
    for (nodes, want) in [(2, 1), (3, 3), (6, 3)] {
        let map = solved("1+1", DomainLevel::Host, &vec![2; nodes], 1);
        assert_eq!(map.partitions.len(), 1);
        let chain = &map.partitions[0].chain.devices;
        assert_eq!(chain.len(), want, "{nodes} nodes");
        let hosts: BTreeSet<NodeId> = chain
            .iter()
            .map(|no| map.device(*no).unwrap().node)
            .collect();
        assert_eq!(hosts.len(), want);
    }
}

#[test]
fn every_broken_rule_is_noticed() {
    let good = solved("4+2", DomainLevel::Host, &[1; 7], 1);
    type Breaking = fn(&mut ClusterMap);
    let breakings: [(&str, Breaking); 21] = [
        ("two nodes", |m| m.nodes[1].id = m.nodes[0].id),
        ("number 0", |m| m.nodes[0].id = NodeId(0)),
        ("no core", |m| m.nodes[0].cores.clear()),
        ("have the address", |m| {
            m.nodes[1].cores = m.nodes[0].cores.clone()
        }),
        ("two devices have the number", |m| {
            m.devices[1].no = m.devices[0].no
        }),
        ("have the name", |m| m.devices[1].id = m.devices[0].id),
        ("which there is not", |m| m.devices[0].node = NodeId(99)),
        ("belongs to core 9", |m| m.devices[0].core = 9),
        ("no placement group", |m| m.groups.clear()),
        ("has 5 devices", |m| m.groups[0].devices.truncate(5)),
        ("twice", |m| m.groups[0].devices[1] = m.groups[0].devices[0]),
        ("names device 77", |m| m.groups[0].devices[1] = DeviceNo(77)),
        ("two placement groups", |m| m.groups[1].id = m.groups[0].id),
        ("out of order", |m| {
            m.groups.last_mut().unwrap().class = Class { k: 4, m: 2 }
        }),
        ("no partition", |m| m.partitions.clear()),
        ("very beginning", |m| m.partitions[0].start.0 = "a".into()),
        ("only one that was split off", |m| {
            let mut second = m.partitions[0].clone();
            second.id = PartitionId(second.id.0 + 1);
            second.start = ("photos".into(), "m".into());
            m.partitions.push(second);
        }),
        ("becomes a part of partition 9", |m| {
            let mut partition = m.partitions[0].clone();
            partition.id = PartitionId(5);
            let into = PartitionId(9);
            m.ending.push(Ending { partition, into });
        }),
        ("two partitions have the number", |m| {
            let (partition, into) = (m.partitions[0].clone(), m.partitions[0].id);
            m.ending.push(Ending { partition, into });
        }),
        ("odd number", |m| m.partitions[0].chain.devices.truncate(2)),
        ("two replicas", |m| {
            m.partitions[0].chain.devices[1] = m.partitions[0].chain.devices[0];
        }),
    ];
    for (want, breaking) in breakings {
        let mut bad = good.clone();
        breaking(&mut bad);
        let Err(MapError::Invalid(text)) = bad.validate() else {
            panic!("accepted: {want}")
        };
        assert!(text.contains(want), "'{text}' does not say '{want}'");
        assert!(ClusterMap::from_json(&bad.to_json()).is_err());
    }
    // Two hosts in one rack: at the level of racks the same groups break the rule.
    let mut racks = solved("4+2", DomainLevel::Host, &[1; 7], 3);
    racks.domain = DomainLevel::Rack;
    assert!(
        racks
            .validate()
            .unwrap_err()
            .to_string()
            .contains("into one of the racks")
    );
    assert_eq!(ClusterMap::from_json(&good.to_json()), Ok(good));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the shape, what is solved keeps the rules, by a count of our own; what is
    /// refused could not have been kept.
    #[test]
    fn solved_or_rightly_refused(
        k in 1u8..9, m in 1u8..5, seed: u64,
        devices in proptest::collection::vec(1u32..4, 1..14), racks in 1usize..6,
        level in prop_oneof![Just(DomainLevel::Host), Just(DomainLevel::Rack), Just(DomainLevel::Device)],
    ) {
        let mut map = map(&format!("{k}+{m}"), level, &devices, racks);
        let most = usize::from(m).saturating_sub(1).max(1);
        let domain = |no: DeviceNo| {
            let device = map.device(no).unwrap();
            match level {
                DomainLevel::Rack => (device.node.0 - 1) as usize % racks,
                DomainLevel::Device => no.0 as usize,
                _ => device.node.0 as usize,
            }
        };
        let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
        for device in &map.devices {
            *sizes.entry(domain(device.no)).or_default() += 1;
        }
        let capacity: usize = sizes.values().map(|n| (*n).min(most)).sum();
        let of: BTreeMap<DeviceNo, usize> =
            map.devices.iter().map(|d| (d.no, domain(d.no))).collect();
        match solve(&mut map, seed) {
            Ok(()) => {
                prop_assert_eq!(map.validate(), Ok(()));
                for group in &map.groups {
                    let mut held: BTreeMap<usize, usize> = BTreeMap::new();
                    for device in &group.devices {
                        *held.entry(of[device]).or_default() += 1;
                    }
                    // The loss of any one domain leaves a margin of one (none can be left with m = 1).
                    prop_assert!(held.values().all(|n| *n <= most));
                }
                let classes: BTreeSet<u8> = map.groups.iter().map(|g| g.class.k).collect();
                prop_assert_eq!(classes, (1..=k).collect::<BTreeSet<u8>>());
                let mut again = map.clone();
                solve(&mut again, seed).unwrap();
                prop_assert_eq!(again, map);
            }
            Err(SolveError::ClassDoesNotFit { fits, .. }) => {
                prop_assert!(capacity < usize::from(k) + usize::from(m));
                if let Some(class) = fits {
                    map.class = class;
                    let outcome = solve(&mut map, seed);
                    let chain = matches!(outcome, Err(SolveError::ChainDoesNotFit { .. }));
                    prop_assert!(outcome.is_ok() || chain, "{class} was said to fit");
                }
            }
            Err(SolveError::ChainDoesNotFit { .. }) => {
                prop_assert!(level == DomainLevel::Rack && devices.len() >= 3);
                prop_assert!(sizes.len() < 3);
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    /// A damaged map file is refused or read; it never panics.
    #[test]
    fn a_damaged_map_never_panics(at in 0usize..4000, byte: u8) {
        let mut json = solved("2+2", DomainLevel::Host, &[1; 4], 1).to_json();
        let at = at % json.len();
        json[at] = byte;
        let _ = ClusterMap::from_json(&json);
    }
}

//! Changes of the map, the choice of spares, and maps of older files.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use ashlar_cluster_map::{
    ChangeError, ClusterMap, ControlMember, Core, Device, DomainLevel, Domains, History, MapChange,
    Node, extend, solve, spares,
};
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, Epoch, NodeId, PartitionId};
use ashlar_layout::version::{ENTRY_VERSION, ENTRY_VERSION_LEAST};
use proptest::prelude::*;

const FIRST: PartitionId = PartitionId(0);

fn node(number: u32, zones: u32) -> (Node, Vec<Device>) {
    let id = NodeId(number);
    let node = Node {
        id,
        domains: Domains {
            zone: ((number - 1) % zones).to_string(),
            ..Domains::default()
        },
        cores: vec![Core {
            address: format!("10.0.0.{number}:4000"),
        }],
    };
    let mut name = [0; 16];
    name[..4].copy_from_slice(&number.to_le_bytes());
    let device = Device {
        no: DeviceNo(number),
        id: DeviceId(name),
        node: id,
        core: 0,
        size: 1 << 30,
    };
    (node, vec![device])
}

/// Nodes of one device each, all of one number, in zones; the chain on the first three.
fn map(nodes: u32, zones: u32) -> ClusterMap {
    let mut map = ClusterMap::bare(
        ClusterId([7; 16]),
        "1+2".parse().unwrap(),
        1 << 20,
        DomainLevel::Zone,
    );
    for number in 1..=nodes {
        let (node, devices) = node(number, zones);
        map.nodes.push(node);
        map.devices.extend(devices);
    }
    solve(&mut map, 1).unwrap();
    map.partitions[0].chain.devices = [1, 2, 3].map(DeviceNo).to_vec();
    map.partitions[0].founders = [1, 2, 3].map(DeviceNo).to_vec();
    map.validate().unwrap();
    map
}

fn apply(map: &ClusterMap, change: MapChange) -> Result<ClusterMap, ChangeError> {
    change.apply(map, &History::default())
}

fn replace(out: u32, with: u32, crowd: bool) -> MapChange {
    MapChange::ReplaceChainMember {
        partition: FIRST,
        out: DeviceNo(out),
        with: DeviceNo(with),
        crowd,
    }
}

fn numbers(map: &ClusterMap, out: u32, usable: &[u32]) -> Vec<(u32, bool)> {
    spares(map, FIRST, DeviceNo(out), |n| usable.contains(&n.0))
        .into_iter()
        .map(|s| (s.device.0, s.crowded))
        .collect()
}

#[test]
fn a_map_of_an_older_file_is_read() {
    let map = map(6, 3);
    let mut json: serde_json::Value = serde_json::from_slice(&map.to_json()).unwrap();
    let file = json.as_object_mut().unwrap();
    assert!(!file.contains_key("control") && !file.contains_key("draining"));
    let partition = file["partitions"][0].as_object_mut().unwrap();
    assert!(partition.remove("founders").is_some());
    let old = serde_json::to_vec(&json).unwrap();
    assert_eq!(ClusterMap::from_json(&old), Ok(map.clone()));
    // What the chain became is not what it was founded with.
    let mut moved = apply(&map, replace(2, 5, false)).unwrap();
    assert_eq!(moved.partitions[0].founders, [1, 2, 3].map(DeviceNo));
    moved.control = vec![ControlMember {
        id: 1,
        address: "10.0.0.1:4100".into(),
    }];
    assert_eq!(ClusterMap::from_json(&moved.to_json()), Ok(moved));
}

#[test]
fn broken_rules_of_the_new_parts_are_noticed() {
    type Breaking = fn(&mut ClusterMap);
    let member = |id: u32, address: &str| ControlMember {
        id,
        address: address.into(),
    };
    let mut good = map(6, 3);
    good.control = (1..=3).map(|id| member(id, &format!("a:{id}"))).collect();
    good.validate().unwrap();
    let breakings: [(&str, Breaking); 10] = [
        ("takes an odd number, 7", |m| m.control.truncate(2)),
        ("number 0", |m| m.control[0].id = 0),
        ("two control members", |m| m.control[0].id = m.control[1].id),
        ("no address", |m| m.control[0].address.clear()),
        ("which is taken", |m| {
            m.control[0].address = m.nodes[2].cores[0].address.clone()
        }),
        ("founders", |m| {
            m.partitions[0].founders.pop();
        }),
        ("device 0", |m| m.partitions[0].founders[0] = DeviceNo(0)),
        ("name device 2 twice", |m| {
            m.partitions[0].founders[0] = DeviceNo(2)
        }),
        ("there is no such node", |m| m.draining = vec![NodeId(9)]),
        ("draining twice", |m| {
            m.draining = vec![NodeId(1), NodeId(1)]
        }),
    ];
    for (want, breaking) in breakings {
        let mut bad = good.clone();
        breaking(&mut bad);
        let text = bad.validate().unwrap_err().to_string();
        assert!(text.contains(want), "'{text}' does not say '{want}'");
    }
}

#[test]
fn spares_keep_the_domains_apart_while_there_are_any() {
    // Zones: 1 4 7, 2 5 8, 3 6 9.
    let mut map = map(9, 3);
    let all: Vec<u32> = (1..=9).collect();
    let apart = numbers(&map, 2, &all);
    assert_eq!(apart[..2], [(5, false), (8, false)]);
    assert!(apart[2..].iter().all(|(_, crowded)| *crowded));
    assert_eq!(
        apart.len(),
        6,
        "neither the members that stay nor the one that leaves"
    );
    assert_eq!(numbers(&map, 2, &[1, 2, 3, 8]), [(8, false)]);
    assert_eq!(numbers(&map, 2, &[4]), [(4, true)]);
    map.draining = vec![NodeId(5)];
    assert_eq!(numbers(&map, 2, &all)[0], (8, false));
    // The larger device first; a device that is in no chain before one that is.
    map.draining.clear();
    map.devices[7].size *= 2;
    assert_eq!(numbers(&map, 2, &all)[0], (8, false));
    let mut second = map.partitions[0].clone();
    second.id = PartitionId(1);
    second.start.0 = "m".into();
    second.chain.devices = [1, 8, 3].map(DeviceNo).to_vec();
    map.partitions.push(second);
    map.validate().unwrap();
    assert_eq!(numbers(&map, 2, &all)[0], (5, false));
}

#[test]
fn a_member_is_replaced_by_who_may_replace_it() {
    let mut six = map(6, 3);
    six.draining = vec![NodeId(6)];
    let next = apply(&six, replace(2, 5, false)).unwrap();
    assert_eq!(next.epoch, Epoch(2));
    assert_eq!(next.partitions[0].chain.devices, [1, 5, 3].map(DeviceNo));
    let crowded = ChangeError::Crowded {
        partition: FIRST,
        device: DeviceNo(4),
        better: DeviceNo(5),
    };
    assert_eq!(apply(&six, replace(2, 4, false)), Err(crowded));
    assert!(apply(&six, replace(2, 4, true)).is_ok());
    let refused = |out, with| {
        apply(&six, replace(out, with, true))
            .unwrap_err()
            .to_string()
    };
    assert!(refused(4, 5).contains("is not in the chain"));
    assert!(refused(2, 1).contains("a member already"));
    assert!(refused(2, 6).contains("is draining"));
    assert!(refused(2, 9).contains("no device 9"));
    let nowhere = MapChange::ReplaceChainMember {
        partition: PartitionId(4),
        out: DeviceNo(1),
        with: DeviceNo(4),
        crowd: false,
    };
    let unknown = ChangeError::UnknownPartition(PartitionId(4));
    assert_eq!(apply(&six, nowhere), Err(unknown));
}

#[test]
fn a_new_node_brings_new_groups_and_leaves_the_old_ones_alone() {
    let before = map(6, 3);
    let (node, devices) = node(7, 3);
    let groups = Vec::new();
    let change = MapChange::AddNode {
        node,
        devices,
        groups,
    }
    .resolve(&before);
    let after = apply(&before, change.clone()).unwrap();
    for group in &before.groups {
        assert_eq!(after.group(group.id), Some(group));
    }
    let new: Vec<_> = after
        .groups
        .iter()
        .filter(|g| before.group(g.id).is_none())
        .collect();
    assert!(!new.is_empty());
    assert!(new.iter().all(|g| g.devices.contains(&DeviceNo(7))));
    assert_eq!(
        extend(&after, 1),
        Ok(Vec::new()),
        "all devices have groups now"
    );
    assert_eq!(change, change.clone().resolve(&before), "the same again");
    // It cannot leave while groups name it; and the same node does not come twice.
    let leave = MapChange::RemoveNode { node: NodeId(7) };
    let stays = apply(&after, leave).unwrap_err();
    let counted =
        matches!(stays, ChangeError::StillInUse { chains: 0, groups, .. } if groups == new.len());
    assert!(counted, "{stays}");
    assert_eq!(
        apply(&after, change),
        Err(ChangeError::NodeReused(NodeId(7)))
    );
}

#[test]
fn a_whole_map_keeps_what_must_stay() {
    let now = map(9, 3);
    type Edit = fn(&mut ClusterMap);
    let refused: [(&str, Edit); 8] = [
        ("cluster", |m| m.cluster = ClusterId([1; 16])),
        ("control members", |m| {
            m.control.push(ControlMember {
                id: 1,
                address: "a:1".into(),
            })
        }),
        ("stripe", |m| m.stripe_data *= 2),
        ("placement group", |m| {
            m.groups.pop();
        }),
        ("placement group 0", |m| m.groups[0].devices.swap(0, 1)),
        ("device 4", |m| m.devices[3].id = DeviceId([9; 16])),
        ("founders", |m| m.partitions[0].founders.swap(0, 1)),
        ("more than one member", |m| {
            m.partitions[0].chain.devices = [1, 5, 6].map(DeviceNo).to_vec();
        }),
    ];
    let set = |map: ClusterMap| {
        let map = Box::new(map);
        MapChange::SetMap { map }
    };
    for (want, edit) in refused {
        let mut new = now.clone();
        edit(&mut new);
        let error = apply(&now, set(new)).unwrap_err();
        assert!(
            error.to_string().contains(want),
            "'{error}' does not say '{want}'"
        );
    }
    let mut new = now.clone();
    new.epoch = Epoch(77);
    new.partitions[0].chain.devices[1] = DeviceNo(5);
    let after = apply(&now, set(new.clone())).unwrap();
    assert_eq!(after.epoch, Epoch(2));
    new.epoch = Epoch(2);
    assert_eq!(after, new);
}

fn any_change() -> impl Strategy<Value = MapChange> {
    let number = 1u32..11;
    let of = move || (1u32..11).prop_map(NodeId);
    prop_oneof![
        of().prop_map(|node| MapChange::DrainNode { node }),
        of().prop_map(|node| MapChange::UndrainNode { node }),
        of().prop_map(|node| MapChange::RemoveNode { node }),
        (of(), 0u32..4).prop_map(|(node, zone)| MapChange::SetDomains {
            node,
            domains: Domains {
                zone: zone.to_string(),
                ..Domains::default()
            }
        }),
        (of(), 1u32..11).prop_map(|(node, n)| MapChange::SetCores {
            node,
            cores: vec![Core {
                address: format!("10.0.0.{n}:4000")
            }]
        }),
        (number, 1u32..11, any::<bool>()).prop_map(|(o, w, c)| replace(o, w, c)),
        (any::<bool>(), proptest::collection::vec(1u32..11, 0..3))
            .prop_map(|(out, devices)| marks(out, &devices)),
        (7u32..11, 1u32..4).prop_map(|(n, zones)| {
            let (node, devices) = node(n, zones);
            MapChange::AddNode {
                node,
                devices,
                groups: Vec::new(),
            }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever changes are asked for: the map stays valid, its epoch counts up by one, groups and
    /// founders stay, a chain changes by one member at most, never to a crowded one unasked; who left never comes back.
    #[test]
    fn changes_keep_the_rules(
        changes in proptest::collection::vec((any_change(), any::<bool>()), 1..25)
    ) {
        let mut map = map(6, 3);
        let mut history = History::default();
        for (change, resolved) in changes {
            let change = if resolved { change.resolve(&map) } else { change };
            let Ok(next) = change.apply(&map, &history) else { continue };
            prop_assert_eq!(next.validate(), Ok(()));
            prop_assert_eq!(next.epoch.0, map.epoch.0 + 1);
            for group in &map.groups {
                prop_assert_eq!(next.group(group.id), Some(group));
            }
            let (old, new) = (&map.partitions[0], &next.partitions[0]);
            prop_assert_eq!(&old.founders, &new.founders);
            let before: BTreeSet<_> = old.chain.devices.iter().collect();
            let after: BTreeSet<_> = new.chain.devices.iter().collect();
            prop_assert!(before.difference(&after).count() <= 1);
            prop_assert_eq!(old.chain.devices.len(), new.chain.devices.len());
            if let MapChange::ReplaceChainMember { out, with, crowd: false, .. } = change {
                let zone = |no: &DeviceNo| {
                    let device = map.device(*no).unwrap();
                    map.node(device.node).unwrap().domains.zone.clone()
                };
                let staying = before.iter().filter(|no| ***no != out);
                let staying: BTreeSet<_> = staying.map(|no| zone(no)).collect();
                let shares = staying.contains(&zone(&with));
                let node = |no: &DeviceNo| map.device(*no).unwrap().node;
                let others = map.devices.iter().filter(|d| !staying.contains(&zone(&d.no)))
                    .filter(|d| d.no != out && !map.draining.contains(&node(&d.no))).count();
                prop_assert!(!shares || others == 0);
            }
            for node in &next.nodes {
                prop_assert!(!history.nodes.contains(&node.id));
            }
            history.note(&map, &next);
            map = next;
        }
    }
}

fn split(partition: u32, bucket: &str, key: &str) -> MapChange {
    MapChange::SplitPartition {
        partition: PartitionId(partition),
        bucket: bucket.to_owned(),
        key: key.to_owned(),
    }
}

fn merge(left: u32, right: u32) -> MapChange {
    MapChange::MergePartitions {
        left: PartitionId(left),
        right: PartitionId(right),
    }
}

fn ids(map: &ClusterMap) -> Vec<u32> {
    map.partitions.iter().map(|p| p.id.0).collect()
}

#[test]
fn partitions_are_split_and_merged_under_new_numbers() {
    let map = map(6, 3);
    let map = apply(&map, split(0, "photos", "m")).unwrap();
    let map = apply(&map, split(0, "archive", "")).unwrap();
    assert_eq!(ids(&map), [0, 2, 1]);
    let holder = |bucket: &str, key: &str| map.partition(bucket, key).unwrap().id.0;
    assert_eq!(holder("a", "z"), 0);
    assert_eq!(holder("archive", ""), 2);
    assert_eq!(holder("photos", "lzzz"), 2);
    assert_eq!(holder("photos", "m"), 1);
    assert_eq!(holder("zebra", ""), 1);
    let child = map.known_partition(PartitionId(1)).unwrap();
    assert_eq!(child.parents, [PartitionId(0)]);
    assert_eq!(child.founders, map.partitions[0].chain.devices);
    let merged = apply(&map, merge(0, 2)).unwrap();
    assert_eq!(ids(&merged), [3, 1]);
    assert_eq!(merged.ending.len(), 2);
    assert_eq!(ClusterMap::from_json(&merged.to_json()), Ok(merged.clone()));
    let end = |id: u32| {
        let partition = merged.known_partition(PartitionId(id)).unwrap();
        merged.end_of(&partition.start).cloned()
    };
    assert_eq!(end(0), Some(("archive".into(), String::new())));
    assert_eq!(end(2), Some(("photos".into(), "m".into())));
    assert_eq!(end(1), None);
    assert!(!merged.is_over(PartitionId(0)), "it is ending");
    let into = PartitionId(3);
    let over = apply(&merged, MapChange::ForgetEnding { into }).unwrap();
    assert!(over.ending.is_empty());
    assert!(over.is_over(PartitionId(0)) && over.is_over(PartitionId(2)));
    assert!(!over.is_over(PartitionId(3)) && !over.is_over(PartitionId(4)));
    // No number comes back, and an older map does not take a number for over that it does not know.
    assert!(!map.is_over(PartitionId(3)));
    assert_eq!(ids(&apply(&over, split(3, "bbb", "")).unwrap()), [3, 4, 1]);
}

#[test]
fn partitions_are_not_split_or_merged_wrongly() {
    let map = apply(&map(6, 3), split(0, "photos", "m")).unwrap();
    let no_border = |change: MapChange| {
        let refused = matches!(apply(&map, change), Err(ChangeError::NoBorder { .. }));
        assert!(refused);
    };
    for change in [
        split(0, "photos", "m"),
        split(0, "photos", "n"),
        split(1, "photos", "m"),
        split(1, "photos", ""),
        split(0, "", ""),
        split(0, "not/a/bucket", ""),
        split(0, "fine", &"k".repeat(5000)),
    ] {
        no_border(change);
    }
    let unknown = Err(ChangeError::UnknownPartition(PartitionId(9)));
    assert_eq!(apply(&map, split(9, "b", "")), unknown);
    assert_eq!(apply(&map, merge(0, 9)), unknown);
    let into = PartitionId(9);
    assert_eq!(apply(&map, MapChange::ForgetEnding { into }), unknown);
    for change in [merge(1, 0), merge(0, 0)] {
        let refused = apply(&map, change);
        assert!(
            matches!(refused, Err(ChangeError::NoMerge { .. })),
            "{refused:?}"
        );
    }
    let moved = MapChange::ReplaceChainMember {
        partition: PartitionId(1),
        out: DeviceNo(2),
        with: DeviceNo(5),
        crowd: false,
    };
    let moved = apply(&map, moved).unwrap();
    let refused = apply(&moved, merge(0, 1));
    assert!(
        matches!(refused, Err(ChangeError::NoMerge { .. })),
        "{refused:?}"
    );
    // A whole new map leaves the partitions as they are.
    let mut whole = map.clone();
    whole.partitions.remove(1);
    let refused = apply(
        &map,
        MapChange::SetMap {
            map: Box::new(whole),
        },
    );
    assert!(matches!(refused, Err(ChangeError::Fixed(_))), "{refused:?}");
    let mut torn = map.clone();
    torn.partitions[1].parents.clear();
    assert!(
        torn.validate().is_err(),
        "only a child begins inside of a bucket"
    );
}

fn marks(out: bool, devices: &[u32]) -> MapChange {
    let devices = devices.iter().map(|no| DeviceNo(*no)).collect();
    match out {
        true => MapChange::MarkOut { devices },
        false => MapChange::MarkIn { devices },
    }
}

#[test]
fn devices_go_out_and_come_in_again() {
    let map = map(6, 3);
    assert!(!String::from_utf8_lossy(&map.to_json()).contains("\"out\""));
    let out = apply(&map, marks(true, &[5, 2])).unwrap();
    assert_eq!(out.out, [2, 5].map(DeviceNo).into());
    // Nothing else is another than before.
    let mut same = out.clone();
    (same.out, same.epoch) = (BTreeSet::new(), map.epoch);
    assert_eq!(same, map);
    // The file says it, and one that was written before there was this says that nothing is.
    assert_eq!(ClusterMap::from_json(&out.to_json()), Ok(out.clone()));
    let mut json: serde_json::Value = serde_json::from_slice(&out.to_json()).unwrap();
    assert!(json.as_object_mut().unwrap().remove("out").is_some());
    let older = ClusterMap::from_json(&serde_json::to_vec(&json).unwrap()).unwrap();
    assert!(older.out.is_empty());
    let back = apply(&out, marks(false, &[5])).unwrap();
    assert_eq!(back.out, [DeviceNo(2)].into());

    for (map, change, want) in [
        (&map, marks(true, &[]), "names no device"),
        (&map, marks(true, &[9]), "no device 9"),
        (&map, marks(true, &[3, 3]), "device 3 is out already"),
        (&out, marks(true, &[3, 5]), "device 5 is out already"),
        (&out, marks(false, &[3]), "device 3 is in already"),
        (&out, marks(false, &[]), "names no device"),
    ] {
        let told = apply(map, change).unwrap_err().to_string();
        assert!(told.contains(want), "'{told}' does not say '{want}'");
    }
    let mut stranger = map.clone();
    stranger.out.insert(DeviceNo(9));
    let told = stranger.validate().unwrap_err().to_string();
    assert!(told.contains("device 9 is out"), "{told}");
}

#[test]
fn a_node_that_leaves_takes_what_is_out_along() {
    let mut map = map(6, 3);
    let (last, devices) = node(7, 3);
    map.nodes.push(last);
    map.devices.extend(devices);
    let drained = apply(&map, MapChange::DrainNode { node: NodeId(7) }).unwrap();
    let out = apply(&drained, marks(true, &[7, 1])).unwrap();
    let gone = apply(&out, MapChange::RemoveNode { node: NodeId(7) }).unwrap();
    assert_eq!(gone.out, [DeviceNo(1)].into());
}

fn raised(map: &ClusterMap, to: u16) -> Result<ClusterMap, ChangeError> {
    apply(map, MapChange::RaiseEntries { to })
}

#[test]
fn what_may_be_written_only_rises() {
    let new = map(6, 3);
    assert_eq!(
        new.entries, ENTRY_VERSION,
        "all nodes of a new cluster are new"
    );
    let mut older = new.clone();
    older.entries = ENTRY_VERSION_LEAST;
    // A map of before does not say it, and is written as before.
    let json = String::from_utf8(older.to_json()).unwrap();
    assert!(!json.contains("entries"), "{json}");
    assert_eq!(ClusterMap::from_json(json.as_bytes()), Ok(older.clone()));
    let up = raised(&older, ENTRY_VERSION).unwrap();
    assert_eq!((up.entries, up.epoch.0), (ENTRY_VERSION, older.epoch.0 + 1));
    assert_eq!(ClusterMap::from_json(&up.to_json()), Ok(up.clone()));
    for to in [0, ENTRY_VERSION_LEAST, ENTRY_VERSION] {
        let change = MapChange::RaiseEntries { to };
        let told = change.check_proposer(ENTRY_VERSION, &up).unwrap_err();
        assert!(matches!(told, ChangeError::Raised { .. }), "{told}");
        // What was agreed on is never refused, and never lowers it.
        let same = raised(&up, to).unwrap();
        assert_eq!((same.entries, same.epoch.0), (up.entries, up.epoch.0 + 1));
    }
    // A whole map neither lowers nor raises it.
    for (map, new) in [(&up, &older), (&older, &up)] {
        let change = MapChange::SetMap {
            map: Box::new(new.clone()),
        };
        let told = change.check_proposer(ENTRY_VERSION, map).unwrap_err();
        assert!(told.to_string().contains("entries"), "{told}");
        assert_eq!(apply(map, change).unwrap().entries, map.entries);
    }
    // A member that was set back has forgotten it; the next raise makes the maps the same again.
    let mut forgot = up.clone();
    forgot.entries = ENTRY_VERSION_LEAST;
    assert_eq!(
        raised(&forgot, ENTRY_VERSION).unwrap(),
        raised(&up, ENTRY_VERSION).unwrap()
    );
    let mut bad = older.clone();
    bad.entries = ENTRY_VERSION_LEAST - 1;
    assert!(bad.validate().is_err());
}

#[test]
fn nobody_proposes_what_he_could_not_read() {
    let newer = ENTRY_VERSION + 1;
    let change = MapChange::RaiseEntries { to: newer };
    let map = map(6, 3);
    let told = change.check_proposer(ENTRY_VERSION, &map).unwrap_err();
    assert!(told.to_string().contains("newer version first"), "{told}");
    assert_eq!(change.check_proposer(newer, &map), Ok(()));
    // What newer members agreed on is so at an older one too; it does not serve then.
    let map = raised(&map, newer).unwrap();
    assert_eq!(map.check_reader(newer), Ok(()));
    let told = map.check_reader(ENTRY_VERSION).unwrap_err().to_string();
    assert!(told.contains("start the node with"), "{told}");
}

//! How many devices may be out without a person having looked at it.
//!
//! One device, or all of a host or a rack, may well be gone. That more are is as a rule something else: a network that
//! is cut, power that is off, the one who looks being cut off itself. Moving data helps in none of these.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::DeviceNo;

use crate::map::ClusterMap;
use crate::rules::{Place, place};

/// Why no device is to be marked out while these are away or out; none: one may be. `most`: how many may be so then; if
/// it is not said, a quarter of all, and no more than the largest fault domain has, but always one.
pub fn held(map: &ClusterMap, away: &BTreeSet<DeviceNo>, most: Option<usize>) -> Option<String> {
    let (all, got) = (map.devices.len(), away.len());
    let told = |why: String| {
        Some(format!(
            "{got} of {all} devices are away or out, {why}: a person has to see what it is"
        ))
    };
    if let Some(most) = most {
        return match got > most {
            true => told(format!("and {most} are allowed to be")),
            false => None,
        };
    }
    let quarter = (all / 4).max(1);
    if got > quarter {
        return told(format!("more than a quarter of all ({quarter})"));
    }
    let mut sizes: BTreeMap<Place<'_>, usize> = BTreeMap::new();
    for place in map
        .devices
        .iter()
        .filter_map(|it| place(map, it, map.domain))
    {
        *sizes.entry(place).or_default() += 1;
    }
    let largest = sizes.values().copied().max().unwrap_or(1);
    match got > largest {
        true => told(format!("more than one fault domain has ({largest})")),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::{ClusterId, DeviceId, NodeId};

    use super::*;
    use crate::map::{Class, Core, Device, DomainLevel, Domains, Node};

    /// So many nodes of so many devices each, two nodes to a rack.
    fn map(nodes: u32, each: u32, level: DomainLevel) -> ClusterMap {
        let class = Class { k: 2, m: 1 };
        let mut map = ClusterMap::bare(ClusterId([1; 16]), class, 4096, level);
        for node in 1..=nodes {
            let rack = format!("rack-{}", node / 2);
            map.nodes.push(Node {
                id: NodeId(node),
                domains: Domains {
                    rack,
                    ..Domains::default()
                },
                cores: vec![Core {
                    address: format!("node-{node}:1"),
                }],
            });
            for at in 0..each {
                let no = (node - 1) * each + at + 1;
                map.devices.push(Device {
                    no: DeviceNo(no),
                    id: DeviceId([no as u8; 16]),
                    node: NodeId(node),
                    core: 0,
                    size: 1 << 30,
                });
            }
        }
        map
    }

    #[test]
    fn more_than_one_domain_or_a_quarter_is_for_a_person() {
        let away = |count: u32| (1..=count).map(DeviceNo).collect::<BTreeSet<_>>();
        let may = |map: &ClusterMap, count, most| held(map, &away(count), most).is_none();
        // Of four nodes one may go, and of three as well.
        for nodes in [3, 4, 6, 7] {
            let small = map(nodes, 1, DomainLevel::Host);
            assert!(may(&small, 0, None) && may(&small, 1, None) && !may(&small, 2, None));
            assert!(may(&small, 2, Some(2)) && !may(&small, 3, Some(2)));
            assert!(!may(&small, 1, Some(0)));
        }
        // A host of three devices, and no more than that.
        let hosts = map(20, 3, DomainLevel::Host);
        assert!(may(&hosts, 3, None) && !may(&hosts, 4, None));
        let racks = map(20, 3, DomainLevel::Rack);
        assert!(may(&racks, 6, None) && !may(&racks, 7, None));
        let devices = map(20, 3, DomainLevel::Device);
        assert!(may(&devices, 1, None) && !may(&devices, 2, None));
        // A quarter, though the domain is larger.
        let large = map(4, 6, DomainLevel::Rack);
        assert!(may(&large, 6, None) && !may(&large, 7, None));
        let why = held(&large, &away(7), None).unwrap_or_default();
        assert!(
            why.contains("7 of 24") && why.contains("a quarter"),
            "{why}"
        );
    }
}

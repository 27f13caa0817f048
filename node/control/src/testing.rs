//! Maps for tests.

use ashlar_cluster_map::{
    ClusterMap, ControlMember, Core, Device, DomainLevel, Domains, Node, solve,
};
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId};

/// The cluster of all tests.
pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A node with one device, both of this number.
pub(crate) fn node(number: u32, zones: u32) -> (Node, Vec<Device>) {
    let id = NodeId(number);
    let node = Node {
        id,
        domains: Domains {
            zone: ((number - 1) % zones).to_string(),
            ..Domains::default()
        },
        cores: vec![Core {
            address: format!("127.0.0.1:{}", 4000 + number),
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

/// So many nodes in so many zones.
pub(crate) fn map(nodes: u32, zones: u32) -> ClusterMap {
    let mut map = ClusterMap::bare(CLUSTER, "1+2".parse().unwrap(), 1 << 20, DomainLevel::Zone);
    for number in 1..=nodes {
        let (node, devices) = node(number, zones);
        map.nodes.push(node);
        map.devices.extend(devices);
    }
    solve(&mut map, 1).unwrap();
    map
}

/// The same with control members at these addresses.
pub(crate) fn map_with_control(addresses: &[String]) -> ClusterMap {
    let mut map = map(6, 3);
    map.control = (1..)
        .zip(addresses)
        .map(|(id, address)| ControlMember {
            id,
            address: address.clone(),
        })
        .collect();
    map
}

//! What was found of a stripe, in the words of the ledger.

use std::collections::BTreeSet;

use ashlar_cluster_audit::{Charge, Kind, Looked, Prey};
use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::DeviceNo;
use ashlar_layout::manifest::Stripe;
use ashlar_node_client::{Fault, Mended};

/// What was wrong with a shard of which it is known that something was.
pub fn kind(fault: &Fault) -> Kind {
    fault.kind().map_or(Kind::Other, Kind::from)
}

/// What was found of a stripe, the how many-th of its object.
pub fn looked(stripe: &Stripe, nth: u64, found: &Mended) -> Looked {
    let bad = found.bad.iter();
    Looked {
        stripe: stripe.id,
        nth,
        lists: false,
        shard_len: u64::from(stripe.shard_len()),
        whole: found.whole,
        needed: found.needed,
        mended: found.made.clone(),
        bad: bad
            .map(|fault| (fault.index, kind(&fault.fault), fault.device))
            .collect(),
        away: found
            .away
            .iter()
            .map(|fault| (fault.index, fault.device))
            .collect(),
        why: found
            .failed
            .first()
            .or(found.away.first())
            .map_or(String::new(), ToString::to_string),
    }
}

/// A stripe, the how many-th of its object, if it has shards on one of these devices.
pub fn prey(
    map: &ClusterMap,
    stripe: &Stripe,
    nth: u64,
    gone: &BTreeSet<DeviceNo>,
) -> Option<Prey> {
    let devices = map.group(stripe.pg).map(|group| &group.devices);
    let devices = devices.into_iter().flatten().copied();
    let gone: Vec<DeviceNo> = devices.filter(|device| gone.contains(device)).collect();
    let lost = i32::try_from(gone.len()).unwrap_or(i32::MAX);
    (!gone.is_empty()).then_some(Prey {
        stripe: stripe.id,
        nth,
        margin: i32::from(stripe.m).saturating_sub(lost),
        gone,
    })
}

/// What is read of devices to look at a stripe, so many times over.
pub fn charges(map: &ClusterMap, stripe: &Stripe, times: u64) -> Vec<Charge> {
    let bytes = u64::from(stripe.shard_len()) * times;
    let devices = map.group(stripe.pg).map(|group| &group.devices);
    // What is out is not read: nobody says how fast it may be.
    let devices = devices.into_iter().flatten();
    devices
        .filter(|device| !map.out.contains(device))
        .map(|device| Charge {
            device: *device,
            bytes,
        })
        .collect()
}

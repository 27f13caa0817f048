//! What was found of a stripe, in the words of the ledger.

use ashlar_cluster_audit::{Kind, Looked};
use ashlar_cluster_map::ClusterMap;
use ashlar_layout::manifest::Stripe;
use ashlar_node_client::{Fault, Mended};

use ashlar_cluster_audit::Charge;

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

/// What is read of devices to look at a stripe, so many times over.
pub fn charges(map: &ClusterMap, stripe: &Stripe, times: u64) -> Vec<Charge> {
    let bytes = u64::from(stripe.shard_len()) * times;
    let devices = map.group(stripe.pg).map(|group| &group.devices);
    let devices = devices.into_iter().flatten();
    devices
        .map(|device| Charge {
            device: *device,
            bytes,
        })
        .collect()
}

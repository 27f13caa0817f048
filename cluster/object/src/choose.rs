//! Which placement group takes the next stripe.
//!
//! Invariants:
//! - a group is only chosen if all of its devices are believed to take writes;
//! - no group of a smaller class is chosen while one of a larger class can be;
//! - equal counters and beliefs give equal choices.

use ashlar_cluster_map::{Class, ClusterMap, PlacementGroup};

use crate::error::ObjectError;
use crate::health::Health;

/// The group for stripe number `counter`: of the largest class that is whole, in turn.
pub fn choose<'a>(
    map: &'a ClusterMap,
    health: &Health,
    counter: u64,
) -> Result<&'a PlacementGroup, ObjectError> {
    let usable = |group: &&PlacementGroup| group.devices.iter().all(|d| health.is_writable(*d));
    let mut best: Option<Class> = None;
    let mut count = 0u64;
    for group in map.groups.iter().filter(usable) {
        match best {
            Some(class) if larger(class, group.class) => {}
            Some(class) if class == group.class => count += 1,
            _ => (best, count) = (Some(group.class), 1),
        }
    }
    let refused = || ObjectError::NoGroup {
        class: map.class,
        away: health.away(map),
    };
    let class = best.ok_or_else(refused)?;
    let nth = usize::try_from(counter % count).unwrap_or(0);
    map.groups
        .iter()
        .filter(usable)
        .filter(|g| g.class == class)
        .nth(nth)
        .ok_or_else(refused)
}

/// Whether `a` is preferred to `b`: more data shards at no less parity, or more parity.
fn larger(a: Class, b: Class) -> bool {
    (a.m, a.k) > (b.m, b.k)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ashlar_layout::ids::DeviceNo;
    use ashlar_layout::time::Instant;
    use proptest::prelude::*;

    use super::*;
    use crate::error::{Code, Fault};
    use crate::testing::{class, map};

    #[test]
    fn goes_round_all_groups_of_the_class() {
        let map = map(6, class(4, 2));
        let health = Health::default();
        let full = map.groups.iter().filter(|g| g.class == map.class).count() as u64;
        let chosen: BTreeSet<_> = (0..full)
            .map(|i| choose(&map, &health, i).unwrap().id)
            .collect();
        assert_eq!(chosen.len() as u64, full);
    }

    proptest! {
        #[test]
        fn takes_the_largest_class_that_is_whole(away in prop::collection::btree_set(1u32..=6, 0..=6)) {
            let map = map(6, class(4, 2));
            let mut health = Health::default();
            for device in &away {
                health.failed(Instant(0), DeviceNo(*device), &Fault::Late);
            }
            for counter in 0..20 {
                match choose(&map, &health, counter) {
                    Ok(group) => {
                        prop_assert!(group.devices.iter().all(|d| !away.contains(&d.0)));
                        prop_assert_eq!(usize::from(group.class.k), 4 - away.len());
                        prop_assert_eq!(group.class.m, 2);
                    }
                    Err(error) => {
                        prop_assert!(away.len() > 3);
                        prop_assert_eq!(error.code(), Code::DevicesAway);
                        let ObjectError::NoGroup { away: named, .. } = error else { panic!() };
                        let named: BTreeSet<u32> = named.iter().map(|a| a.device.0).collect();
                        prop_assert_eq!(&named, &away);
                    }
                }
            }
        }
    }
}

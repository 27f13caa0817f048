//! Splitting and merging partitions in the map. The journals carry it out; the map says what is wanted.
//!
//! Invariants:
//! - a number of a partition is given out once, for ever;
//! - a new partition begins with its parents' chain, for their replicas make it on their devices;
//! - partitions that were merged stay known until what they became serves, and their replicas with them.

use ashlar_layout::ids::PartitionId;
use ashlar_layout::names::{check_bucket, check_key};

use crate::change::ChangeError;
use crate::map::{ClusterMap, Ending, Partition};

/// Partitions at most.
pub const PARTITIONS_MAX: usize = 1024;

/// Takes a number for a new partition.
fn number(map: &mut ClusterMap) -> PartitionId {
    let id = map.next_partition();
    map.partition_numbers = id.0.saturating_add(1);
    id
}

pub(crate) fn split(
    map: &mut ClusterMap,
    id: PartitionId,
    bucket: &str,
    key: &str,
) -> Result<(), ChangeError> {
    let refuse = |why: String| ChangeError::NoBorder {
        partition: id,
        place: format!("{bucket:?}/{key:?}"),
        why,
    };
    let at = map.partitions.iter().position(|p| p.id == id);
    let at = at.ok_or(ChangeError::UnknownPartition(id))?;
    check_bucket(bucket).map_err(|error| refuse(error.to_string()))?;
    if !key.is_empty() {
        check_key(key).map_err(|error| refuse(error.to_string()))?;
    }
    if map.partitions.len() >= PARTITIONS_MAX {
        return Err(refuse(format!(
            "there are {PARTITIONS_MAX} partitions already"
        )));
    }
    let start = (bucket.to_owned(), key.to_owned());
    let (partition, next) = (&map.partitions[at], map.partitions.get(at + 1));
    if start <= partition.start || next.is_some_and(|next| start >= next.start) {
        let (bucket, key) = &partition.start;
        let end = next.map_or("the end".to_owned(), |next| {
            format!("{:?}/{:?}", next.start.0, next.start.1)
        });
        return Err(refuse(format!(
            "it holds what is behind {bucket:?}/{key:?} and before {end}"
        )));
    }
    let child = Partition {
        id: PartitionId(0),
        start,
        chain: partition.chain.clone(),
        founders: partition.chain.devices.clone(),
        parents: vec![id],
    };
    let id = number(map);
    map.partitions.insert(at + 1, Partition { id, ..child });
    Ok(())
}

pub(crate) fn merge(
    map: &mut ClusterMap,
    left: PartitionId,
    right: PartitionId,
) -> Result<(), ChangeError> {
    let refuse = |why: &str| {
        Err(ChangeError::NoMerge {
            left,
            right,
            why: why.to_owned(),
        })
    };
    for id in [left, right] {
        if map.partition_by_id(id).is_none() {
            return Err(ChangeError::UnknownPartition(id));
        }
    }
    let at = map.partitions.iter().position(|p| p.id == left);
    let pair = at.and_then(|at| Some((at, map.partitions.get(at)?, map.partitions.get(at + 1)?)));
    let Some((at, first, second)) = pair.filter(|(_, _, second)| second.id == right) else {
        return refuse("the second one does not begin where the first one ends");
    };
    if !first.chain.is_where(&second.chain) {
        return refuse("their chains are on different devices: move one of them first");
    }
    let heir = Partition {
        id: PartitionId(0),
        start: first.start.clone(),
        chain: first.chain.clone(),
        founders: first.chain.devices.clone(),
        parents: vec![left, right],
    };
    let id = number(map);
    let gone = map
        .partitions
        .splice(at..at + 2, [Partition { id, ..heir }]);
    let gone = gone.map(|partition| Ending {
        partition,
        into: id,
    });
    let gone: Vec<Ending> = gone.collect();
    map.ending.extend(gone);
    Ok(())
}

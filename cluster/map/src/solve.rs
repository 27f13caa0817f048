//! Under construction: the placement solver.
use crate::map::{ClusterMap, MapError};

/// What the solver cannot do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// Not enough fault domains.
    #[error("{0}")]
    Unsolvable(String),
}

/// Fills `map.groups` and `map.partitions` from its nodes, devices, class and domain level.
pub fn solve(_map: &mut ClusterMap, _seed: u64) -> Result<(), SolveError> {
    Err(SolveError::Unsolvable("not yet".into()))
}

pub(crate) fn validate(_map: &ClusterMap) -> Result<(), MapError> {
    Ok(())
}

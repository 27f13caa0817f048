//! The cluster map: nodes, devices, fault domains, placement groups, partitions and chains; and
//! the solver that places groups and chains under the fault-domain rule.
//!
//! **Architecture invariant:** no I/O here. Reading and writing the map's file is a driver's job.

pub mod map;
mod rules;
pub mod solve;

pub use map::{
    Chain, Class, ClusterMap, Core, Device, DomainLevel, Domains, MapError, Node, Partition,
    PlacementGroup,
};
pub use solve::{SolveError, solve};

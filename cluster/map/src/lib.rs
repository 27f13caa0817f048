//! The cluster map: nodes, devices, fault domains, placement groups, partitions and chains; and
//! the solver that places groups and chains under the fault-domain rule; and the changes that a map may
//! go through.
//!
//! **Architecture invariant:** no I/O here. Reading and writing the map's file is a driver's job.

pub mod change;
pub mod map;
pub mod out;
pub mod partition;
mod rules;
pub mod solve;
pub mod spare;

pub use change::{ChangeError, History, MapChange};
pub use map::{
    Chain, Class, ClusterMap, ControlMember, Core, Device, DomainLevel, Domains, Ending, MapError,
    Node, Partition, PlacementGroup,
};
pub use out::held;
pub use rules::CONTROL_MAX;
pub use solve::{SolveError, extend, solve};
pub use spare::{Spare, spares};

//! Audits and repairs, carried out over the native client.
//!
//! - [`run`] is a node's auditor: it goes through the partitions that the node leads, for as long as it does,
//!   and compares the replicas of each with each other;
//! - [`device`] has the node's devices look at themselves, and [`census`] finds what of their shards no object names;
//! - [`ledger`] reads and writes what is recorded, in the reserved bucket;
//! - [`Asked`] records a pass that somebody asked for.
//!
//! What is looked at next, mended and counted is decided in `ashlar-cluster-audit`.

mod ahead;
pub mod asked;
pub mod census;
mod compare;
pub mod device;
pub mod ledger;
pub mod look;
mod mend;
pub mod node;
mod partition;
mod walk;

pub use asked::Asked;
pub use ledger::{LedgerError, Read};
pub use node::{Known, Options, run};

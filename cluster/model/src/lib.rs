//! The model checker's view of the chained journal.
//!
//! What is checked is what ships: the very `Replica` of `ashlar-cluster-journal`, driven here by a
//! model of devices, connections, clocks and clients that lets everything happen in every order, up
//! to bounds. MODEL.md says what is modelled, how far, and what that does not prove.
//!
//! **Architecture invariant:** nothing here is linked into what ships; and what must hold is judged by
//! what was written and told, never by code of the replica's own.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod act;
mod broken;
mod chain;
mod chunks;
mod client;
mod disk;
mod hash;
mod heal;
mod local;
mod memo;
mod models;
mod net;
mod past;
mod plan;
mod suite;
mod walk;
mod world;

pub use act::Act;
pub use broken::{Broken, PROPERTIES};
pub use chain::Chain;
#[cfg(feature = "mutants")]
pub use models::hunter;
pub use models::{Maker, Scale, models};
pub use plan::{Past, Plan, Seen};
#[cfg(feature = "mutants")]
pub use suite::hunt;
pub use suite::{Outcome, Search, Trace, check, walked};
pub use world::World;

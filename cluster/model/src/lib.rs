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
mod client;
mod disk;
mod hash;
mod heal;
mod local;
mod memo;
mod net;
mod past;
mod plan;
mod suite;
mod walk;
mod world;

pub use act::Act;
pub use broken::{Broken, PROPERTIES};
pub use chain::Chain;
pub use plan::{Past, Plan, Seen};
pub use suite::{Maker, Outcome, Scale, Search, Trace, check, models, walked};
#[cfg(feature = "mutants")]
pub use suite::{hunt, hunter};
pub use world::World;

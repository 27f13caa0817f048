//! Audit and repair as decisions, the ledger of both, and what follows from it.
//!
//! - [`Audit`] decides for one partition which object is looked at next, which finding is mended next, and when that is
//!   recorded; [`Pace`] says how fast a device is read for it;
//! - [`Governor`] says how fast one may be read, by what that does to others;
//! - [`Record`] is what is kept of a partition: where the pass is, what waits to be mended, what was counted. It is one
//!   document, so that none of the three is ever ahead of the others;
//! - [`Census`] finds the shards of a device that no object names, by what passes ask for; [`Orphans`] is what is kept
//!   of them;
//! - [`Comparison`] compares the replicas of a partition with each other, a pass at a time;
//! - [`Tally`] is what was counted, by days; [`Loss`] what is gone;
//! - [`poisson`], [`markov`] and [`zones`] make of that how durable the store was, and how durable a model says that it
//!   is.
//!
//! **Architecture invariant:** no I/O here, no clock, no randomness: time is an argument.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod audit;
pub mod census;
pub mod compare;
pub mod durability;
pub mod govern;
pub mod latency;
pub mod markov;
pub mod orphans;
pub mod pace;
pub mod poisson;
pub mod queue;
pub mod record;
pub mod tally;
pub mod zones;

#[cfg(test)]
mod audit_tests;
#[cfg(test)]
mod census_tests;
#[cfg(test)]
mod changed_tests;
#[cfg(test)]
mod compare_tests;
#[cfg(test)]
mod govern_tests;
#[cfg(test)]
mod hunt_tests;
#[cfg(test)]
mod mends_tests;
#[cfg(test)]
mod rates_tests;
#[cfg(test)]
mod zones_tests;

pub use audit::{Action, Audit, Event, Limits, Looked, Prey, World};
pub use census::Census;
pub use compare::{Compared, Comparison, Divergence, Next, Said};
pub use durability::{Assumptions, Measured, Modelled, Window, measure, model};
pub use govern::{Arrival, Bound, Governor, Told};
pub use orphans::{Orphan, Orphans};
pub use pace::{Charge, Pace, Pacing};
pub use queue::{Finding, How, Job, Outcome};
pub use record::{Absent, BadRecord, Closed, Document, Item, Loss, Place, Record};
pub use tally::{Kind, Tally};

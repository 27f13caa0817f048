//! The chained journal and its index, as state machines.
//!
//! A partition's replicas stand in a chain. The head orders changes; each replica forwards what it
//! receives before it writes it; what n − f replicas hold durably, the head among them, is
//! committed and applied in order to an index of buckets and objects, which `ashlar_cluster_index` keeps on the
//! device. What the index has made durable the log forgets.
//!
//! **Architecture invariant:** no I/O, no clock, no randomness. A [`Replica`] is driven by
//! [`Event`]s and answers with [`Action`]s; the same type runs in a node, in the simulator and
//! under the model checker, so it is `Clone` and `Hash`, and the same events give the same actions.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adopt;
mod api;
mod apply;
#[cfg(test)]
mod bare_tests;
mod bounds;
mod chain;
mod check;
mod dedup;
mod digests;
#[cfg(test)]
mod digests_tests;
mod election;
mod entry;
#[cfg(test)]
mod failover_tests;
mod feed;
mod follower;
mod gate;
mod head;
mod indexing;
mod learn;
mod lease;
mod level;
#[cfg(test)]
mod level_tests;
mod locks;
#[cfg(test)]
mod locks_tests;
mod log;
mod log_replay;
mod membership;
mod mutants;
#[cfg(test)]
mod outcome_tests;
mod pending;
mod progress;
mod promise;
mod reads;
mod rebase;
mod recall;
#[cfg(test)]
mod relocate_tests;
#[cfg(test)]
mod rename_tests;
mod repair;
mod replay;
mod replica;
#[cfg(test)]
mod replica_tests;
#[cfg(test)]
mod review_tests;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod sim_agenda;
#[cfg(test)]
mod sim_clients;
#[cfg(test)]
mod sim_device;
#[cfg(test)]
mod sim_family;
#[cfg(test)]
mod sim_family_clients;
#[cfg(test)]
mod sim_family_device;
#[cfg(test)]
mod sim_family_judge;
#[cfg(test)]
mod sim_family_map;
#[cfg(test)]
mod sim_family_nodes;
#[cfg(test)]
mod sim_family_tests;
#[cfg(test)]
mod sim_faults;
#[cfg(test)]
mod sim_index;
#[cfg(test)]
mod sim_model;
#[cfg(test)]
mod sim_moves;
#[cfg(test)]
mod sim_reads;
#[cfg(test)]
mod sim_tests;
mod start;
mod teach;
mod versions;
mod witness;

pub use api::{Action, Answer, Ask, Border, Config, Event, InlineRef, Limits, ListParams, Wanted};
pub use bounds::Newborn;
#[cfg(feature = "mutants")]
pub use mutants::Mutant;
pub use replica::Replica;

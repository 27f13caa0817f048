//! The control plane: three (or one, or five) members that agree on the cluster map, by openraft over redb.
//!
//! It is off the request path: nodes work with the last map that they have, and elections of a chain's head are the
//! chain's own affair. What is here changes which devices a chain and a group are to have, and lets nodes in and out.
//!
//! - [`state`], [`token`], [`policy`]: what is decided, without I/O, clock or chance.
//! - [`store`], [`storage`], [`network`]: what openraft needs.
//! - [`server`], [`member`], [`thread`]: a member that serves. [`client`]: how to call it. [`wire`]: what they say.
//!
//! **Architecture invariant:** the state machine is a function of the log. Times and random numbers are in the entries,
//! and what is costly or may change with a version (the placement of groups) is computed by the proposer.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod client;
#[cfg(test)]
mod cluster_tests;
mod entries;
#[cfg(test)]
mod entries_tests;
pub mod error;
mod founding;
#[cfg(test)]
mod founding_tests;
pub mod host;
pub mod limits;
pub mod link;
mod look;
pub mod member;
pub mod network;
mod out;
#[cfg(test)]
mod out_tests;
pub mod partitions;
mod policy;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod port_tests;
#[cfg(test)]
mod rig;
pub mod server;
#[cfg(test)]
mod sim;
pub mod state;
#[cfg(test)]
mod state_tests;
pub mod storage;
#[cfg(test)]
mod storage_tests;
pub mod store;
#[cfg(test)]
mod testing;
pub mod thread;
pub mod token;
pub mod types;
pub mod wire;

pub use client::{ClientError, ControlClient, Heard};
pub use error::ControlError;
pub use member::Timing;
pub use out::OutLimits;
pub use partitions::{PartitionLimits, PartitionLoad, may_merge, move_step};
pub use policy::{ChainReport, Patience, Verdict, Watchman};
pub use server::{ControlConfig, ControlServer, StartError};
pub use state::{Refusal, State};
pub use thread::ControlThread;
pub use token::{Token, TokenError};
pub use wire::{MemberStatus, NodeStatus, Status};

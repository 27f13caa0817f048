//! Doubt: what the tests of the whole store share.
//!
//! [`rig`] drives a rig of real processes through the `ashlar` command, as a person would;
//! [`content`] makes bytes that can be told apart; [`model`] knows which states a key may be in
//! after a history of answers and crashes; [`damage`] hurts shards in the files of devices; [`wire`]
//! speaks to a node's port, well or badly; [`s3`] has the clients of S3; [`pulse`] tells what the
//! disk did meanwhile; [`power`] has disks that forget what was not flushed; [`by_hand`] starts nodes without a rig.
//!
//! Everything here panics with the whole story when the store does not do what it should: a
//! test's message is its report.

pub mod binary;
pub mod by_hand;
pub mod chart;
pub mod content;
pub mod damage;
pub mod fabric;
pub mod folder;
pub mod history;
pub mod linear;
#[cfg(test)]
mod linear_tests;
pub mod load;
pub mod model;
pub mod nemesis;
pub mod power;
pub mod pulse;
pub mod rig;
pub mod s3;
mod search;
pub mod shelf;
pub mod shelf_locks;
pub mod shelf_names;
pub mod shelf_order;
#[cfg(test)]
mod shelf_tests;
pub mod storm;
pub mod wire;

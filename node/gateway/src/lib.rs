//! The S3 gateway: what S3's clients talk to, over HTTP and TLS.
//!
//! It drives the native client, and keeps nothing that the store does not have: any number of gateways
//! serve the same buckets. What S3's rules are is decided in `ashlar-cluster-s3`; here is what touches the
//! world: connections, bodies, clocks, the store.
//!
//! - [`server`] accepts connections, [`gateway`] answers requests;
//! - [`admin`] makes users and takes them away; [`lifecycle`] ends what has grown old.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod acl;
pub mod admin;
mod admit;
mod aging;
mod append;
mod body;
mod buckets;
mod call;
mod complete;
mod configure;
mod copies;
mod deletes;
mod digests;
mod directory;
mod encryption;
mod faults;
pub mod gateway;
mod inbound;
mod kept;
mod late;
pub mod lifecycle;
mod lists;
mod locks;
mod memory;
mod objects;
pub mod options;
mod pieces;
mod places;
mod post;
mod puts;
mod rename;
pub mod reply;
pub mod server;
mod tagging;
pub mod tls;
mod together;
mod upload_list;
mod uploads;
mod versions;

pub use ashlar_cluster_s3::bucket::Ownership;
pub use ashlar_cluster_s3::sweep::{SweepRecord, Tally};
pub use ashlar_cluster_s3::users::{ROOT_KEY_LEN, RootKey, SealError, Secret, User};
pub use encryption::is_encrypted;
pub use gateway::Gateway;
pub use options::{GatewayOptions, Limits, Log, LogEntry};

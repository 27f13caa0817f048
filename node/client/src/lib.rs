//! The native client: no HTTP, straight to the owning core.
//!
//! [`Client`] is a tokio driver of the state machines in `ashlar-cluster-object`: what to send, when
//! to hedge, what a reply means is decided there; here are sockets, timers and tasks.
//!
//! A request is written by the task that makes it, in one system call, or with others ([`corked`]); a connection's own
//! task reads replies, each with one read if it is small, and wakes who asked.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod audit;
pub mod client;
mod clock;
pub mod cork;
mod drive;
pub mod error;
pub mod get;
mod inner;
mod link;
mod list;
mod mailbox;
mod nodes;
pub mod options;
mod put;
mod reader;
mod rename;
mod replicas;
mod versions;

#[cfg(test)]
mod audit_tests;
#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod failover_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_answers;
#[cfg(test)]
mod fake_versions;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod replicas_tests;
#[cfg(test)]
mod versions_tests;

pub use ashlar_cluster_object::{
    Away, ByteRange, Code, DATA_KEY_LEN, DataKey, Fault, Making, Mended, Mends, ObjectError,
    ShardFault,
};
pub use audit::{Audited, Gone, ObjectAudit, Step};
pub use client::Client;
pub use clock::Clock;
pub use cork::corked;
pub use error::ClientError;
pub use get::GetStream;
pub use options::{
    ClientOptions, DeleteOptions, DeleteOutcome, Drained, GetOptions, ListOptions, OPERATIONS_MAX,
    PutOptions, PutOutcome, RenameOptions, Seal, Sealed, VersionDropped, VersionsOptions,
};

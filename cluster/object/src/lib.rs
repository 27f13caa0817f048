//! Object operations as state machines: put, get, ranged get, delete.
//!
//! An operation is a [`Machine`]: it takes events and says what is to be sent. A driver (tokio in
//! `node/client`, a simulator in tests) sends it and hands over the answers.
//!
//! - [`Put`], [`Get`], [`Delete`], [`Compose`] (an object of the parts of others): whole operations,
//!   built from
//! - [`StripeWrite`] and [`StripeRead`]: one stripe, [`Ask`]: one question to a partition's head,
//!   [`Look`]: an object's metadata, cached and validated by witnesses, or from the head,
//!   [`Free`]: shards that nothing names any more, [`Mend`]: shards that are to be there and are not.
//! - [`Common`] is what the operations of one client share: the map, [`Health`], [`Heads`], the cache of
//!   metadata, numbers, buffers.
//!
//! **The margin rule.** A stripe of class k+m is acknowledged when k+m−1 of its shards are durable:
//! with m = 2, any one of the shards that were acknowledged may still be lost. That holds for the
//! smaller classes that are used while devices are away too: 1+2 is acknowledged at 2 of 3.
//!
//! **Architecture invariant:** no I/O here, no clock, no randomness: time and the client's number
//! are arguments, and equal events give equal actions.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod ask;
pub mod cache;
pub mod call;
mod change;
pub mod choose;
pub mod cipher;
pub mod common;
pub mod compose;
mod cursor;
pub mod delete;
pub mod encode;
pub mod error;
pub mod free;
pub mod get;
pub mod heads;
pub mod health;
pub mod latency;
pub mod look;
pub mod making;
pub mod mend;
pub mod pool;
pub mod put;
pub mod range;
pub mod relocate;
pub mod rename;
pub mod stripe_read;
pub mod stripe_write;
pub mod tree;
pub mod witness;

#[cfg(test)]
mod cached_tests;
#[cfg(test)]
mod chain_model;
#[cfg(test)]
mod cipher_tests;
#[cfg(test)]
mod compose_tests;
#[cfg(test)]
mod failover_tests;
#[cfg(test)]
mod late_tests;
#[cfg(test)]
mod mend_tests;
#[cfg(test)]
mod object_tests;
#[cfg(test)]
mod relocate_tests;
#[cfg(test)]
mod rename_tests;
#[cfg(test)]
mod stripe_tests;
#[cfg(test)]
mod testing;

pub use ask::Ask;
pub use call::{Action, Answer, CallId, Event, Leftover, Machine};
pub use cipher::{DATA_KEY_LEN, DataKey};
pub use common::{Common, Tuning};
pub use compose::Compose;
pub use delete::{Delete, Deleted};
pub use encode::{STRIPE_SLACK, StripeBuf};
pub use error::{Away, Code, Fault, ObjectError, ShardFault};
pub use free::Free;
pub use get::Get;
pub use heads::{Heads, Reign};
pub use health::{Health, Probed};
pub use look::{Found, Look};
pub use making::Making;
pub use mend::{Mend, Mended, Mends};
pub use pool::{BufferPool, PoolBuf};
pub use put::{Put, PutDone};
pub use range::ByteRange;
pub use relocate::{Relocate, Relocated, Spot};
pub use rename::Rename;
pub use stripe_read::StripeRead;
pub use stripe_write::StripeWrite;

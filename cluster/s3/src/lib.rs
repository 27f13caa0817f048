//! S3's rules, without S3's servers: what a request means, whether it may be done, what is remembered of
//! an object.
//!
//! - [`signature`], [`chunked`]: who sent it, and whether all of it came as it was sent;
//! - [`operation`]: which operation a request is, and whether all that it says is understood;
//! - [`policy`], [`condition`], [`pattern`], [`acl`]: who may do what;
//! - [`conditional`], [`range`], [`listing`]: what a request asks for;
//! - [`checksum`], [`attributes`], [`tags`]: what is kept with an object;
//! - [`bucket`], [`cors`], [`lifecycle`]: what is kept of a bucket;
//! - [`encryption`]: what hides an object from who holds its devices;
//! - [`documents`], [`xml`]: how it is written;
//! - [`users`], [`system`]: users, and where all this stands in the store.
//!
//! **Architecture invariant:** no I/O here, no clock, no randomness: all of it is functions, and times and
//! random bytes are arguments. Whatever is refused says so in S3's words ([`refusal`]).

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod acl;
pub mod acl_document;
#[cfg(test)]
mod acl_tests;
pub mod attributes;
pub mod bucket;
pub mod calendar;
pub mod checksum;
pub mod chunked;
#[cfg(test)]
mod chunked_tests;
pub mod condition;
pub mod conditional;
pub mod cors;
mod crc_combine;
pub mod documents;
pub mod encryption;
#[cfg(test)]
mod encryption_tests;
pub mod form;
pub mod form_policy;
pub mod lifecycle;
pub mod lifecycle_document;
pub mod lifecycle_versions;
pub mod listing;
pub mod object_lock;
pub mod operation;
#[cfg(test)]
mod operation_tests;
pub mod pattern;
pub mod policy;
pub mod range;
pub mod refusal;
pub mod rename;
pub mod signature;
#[cfg(test)]
mod signature_tests;
pub mod signature_v2;
pub mod signature_v4;
pub mod sweep;
pub mod system;
pub mod tags;
pub mod text;
pub mod users;
pub mod version_id;
pub mod xml;

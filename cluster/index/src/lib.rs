//! The index of a partition: an ordered map (bucket, key) → version, larger than memory.
//!
//! | module | what it is |
//! |---|---|
//! | `api` | events in, actions out, questions and answers: the seam to the driver |
//! | [`Index`] | tables, runs, questions that wait |
//! | `change` | what comes in |
//! | `flow` | flushes, merges, roots |
//! | `family`, `clip` | splitting an index, putting two together; what is visible of a run |
//! | `digest` | what two replicas' indexes are compared by |
//! | `clear` | forgetting all of a damaged one |
//! | [`Opening`] | from a root to an index |
//! | [`Cache`] | pages in memory, shared by the partitions of a core |
//!
//! **Architecture invariants:**
//! - No I/O, no clock, no chance: a driver carries out [`Action`]s and reports by [`Event`]s.
//! - The map is a function of the journal's entries up to [`Index::applied`]; what is durable of it is one
//!   of those states, [`Index::covered`]: recovery is the runs of the newest root, and the journal behind it.
//!   Only where an object's bytes are, here or in the journal, is each replica's own.
//! - What cannot be read is an error that names run and page, never an absence.
//!
//! How the journal uses it, and what it costs, is in `decisions/`; the bytes are in `layout/FORMAT.md`, "Index runs".

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod api;
mod ask;
mod beside;
mod builder;
mod cache;
mod change;
mod clear;
mod clip;
mod digest;
mod family;
mod filter;
mod flow;
mod hash;
mod index;
mod job;
mod key;
mod list;
mod memtable;
mod opening;
mod run;
mod span;
mod versions;
mod walk;

pub use api::{
    Action, Answer, Change, Config, Event, Found, Full, IndexError, Item, Limits, List, Name,
    Object, Output, Question, Range, Snapshot, Stats, Stretch, Versions, WriteFailure,
};
pub use cache::{Cache, CacheStats};
pub use index::Index;
pub use opening::{Opened, Opening};

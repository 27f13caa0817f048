//! The engine over a simulated disk: histories against a model, crashes, faults, limits.
#![allow(clippy::unwrap_used, missing_docs)]

mod audits;
mod brink;
mod carrying;
mod census;
mod cleaning;
mod crashes;
mod disk;
mod doubt;
mod faults;
mod histories;
mod index;
mod journal;
mod kinds;
mod limits;
mod model;
mod replicas;
mod rig;
mod roots;
mod space;
mod traces;
mod trims;
mod twins;
mod unseen;

//! The index from outside: against a plain map, on a simulated device, with crashes and rot.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod amend;
mod clear;
mod crashes;
mod damage;
mod device;
mod digest;
mod family;
mod file;
mod model;
mod rig;
mod shape;
mod versions;
mod waste;
mod work;

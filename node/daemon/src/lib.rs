//! The storage node: reactor, engines, journal replicas and the binary protocol, joined.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | the configuration file |
//! | [`run`] | threads, signals, service manager |
//! | `core` | one data core: the reactor's handler |
//! | `devices` | its devices: opening, recovery, fencing |
//! | `replay` | from a device's log to its replicas |
//! | `replicas`, `peers` | its journal replicas and the nodes that they talk to |
//! | `requests`, `lookups` | what clients ask |
//! | `incoming`, `outgoing` | frames |
//!
//! **Architecture invariant:** nothing is decided here that a test without I/O could not reach: what
//! is durable is the engine's to say, what is committed the replica's.

mod chains;
pub mod config;
mod control;
mod core;
mod devices;
mod incoming;
mod lookups;
mod outgoing;
mod peers;
mod replay;
mod replicas;
mod requests;
pub mod run;
mod slab;

pub use config::{CacheMode, Config, ConfigError, DeviceConfig};
pub use run::{DaemonError, run};

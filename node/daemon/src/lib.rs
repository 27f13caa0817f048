//! The storage node: reactor, engines, journal replicas and the binary protocol, joined.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | the configuration file |
//! | [`run`] | threads, signals, service manager |
//! | `shared` | what all cores know |
//! | `core`, `drain` | one data core: the reactor's handler, and its end |
//! | `devices`, `identity` | its devices: opening, recovery, fencing; and which is at which path |
//! | `loads`, `replay` | from a device's indexes and its log to its replicas |
//! | `replicas`, `peers` | its journal replicas and the nodes that they talk to |
//! | `indexes` | what the replicas' indexes want done, and when |
//! | `requests`, `lookups` | what clients ask |
//! | `holding` | what audits and repairs ask of devices, and what that does to others |
//! | `incoming`, `outgoing` | frames |
//! | `words` | what cores have to say |
//! | `control`, `audit`, `own_audit` | beside the cores: following the map, looking at what is stored, and at devices |
//!
//! **Architecture invariant:** nothing is decided here that a test without I/O could not reach: what
//! is durable is the engine's to say, what is committed the replica's.

mod audit;
mod chains;
pub mod config;
mod control;
mod core;
mod devices;
mod drain;
mod holding;
mod identity;
mod incoming;
mod indexes;
mod loads;
mod lookups;
mod outgoing;
mod own_audit;
mod partitions;
mod peers;
mod replay;
mod replicas;
mod requests;
pub mod run;
mod shared;
mod slab;
mod words;

pub use audit::AuditConfig;
pub use config::{CacheMode, Config, ConfigError, DeviceConfig};
pub use core::Core;
pub use run::{DaemonError, run};
pub use shared::{Maps, Pulse, Shared};
pub use words::listen;

//! The storage node: reactor, engines, journal replicas and the binary protocol, joined.

pub mod config;

pub use config::{CacheMode, Config, ConfigError, DeviceConfig};

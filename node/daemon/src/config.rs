//! A node's configuration file: TOML, read once at the start.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ashlar_layout::ids::{DeviceNo, NodeId};
use ashlar_node_control::{OutLimits, PartitionLimits};
use serde::{Deserialize, Serialize};

use crate::audit::AuditConfig;

/// What `ashlar node run --config FILE` reads. Relative paths are relative to the file's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which node of the map this is.
    pub node: NodeId,
    /// The cluster map, JSON.
    pub map: PathBuf,
    /// Its devices.
    #[serde(rename = "device")]
    pub devices: Vec<DeviceConfig>,
    /// Bytes of the buffer pool of each core.
    #[serde(default = "default_pool_bytes")]
    pub pool_bytes: usize,
    /// How long a core polls before it sleeps, in microseconds; 0 never polls.
    #[serde(default)]
    pub spin_us: u32,
    /// Whether this node is a member of the control plane.
    #[serde(default)]
    pub control: Option<ControlConfig>,
    /// Whether the heads of this node feed every follower themselves instead of through the chain: to
    /// compare the two.
    #[serde(default)]
    pub star: bool,
    /// Pin each core's thread to a processor, in order, from this one on.
    #[serde(default)]
    pub first_cpu: Option<usize>,
    /// Bytes of pages of indexes that each core keeps in memory, shared evenly by its devices.
    #[serde(default = "default_index_cache")]
    pub index_cache: usize,
    /// Bytes of a partition's newest changes that are kept in memory until they are written out to its index;
    /// while that is done there are up to four times as many.
    #[serde(default = "default_index_table_bytes")]
    pub index_table_bytes: usize,
    /// Bytes of its journal that a partition keeps although its index has them, for replicas that were away for a
    /// while: one that was away for longer learns the whole index.
    #[serde(default = "default_journal_keep_bytes")]
    pub journal_keep_bytes: u64,
    /// How objects are looked at that nobody asks for.
    #[serde(default)]
    pub audit: AuditConfig,
}

fn default_pool_bytes() -> usize {
    64 * 1024 * 1024
}

/// What [`Config::index_cache`] is unless it is said.
pub const INDEX_CACHE: usize = 64 * 1024 * 1024;
/// What [`Config::index_table_bytes`] is unless it is said,
pub const INDEX_TABLE_BYTES: usize = 8 * 1024 * 1024;
/// and what it may be.
const INDEX_TABLE_RANGE: RangeInclusive<usize> = 4 * 1024..=1024 * 1024 * 1024;
/// What [`AuditConfig::p99_percent`] may be.
const PERCENT_RANGE: RangeInclusive<u32> = 1..=1000;
/// What [`Config::journal_keep_bytes`] is unless it is said.
pub const JOURNAL_KEEP_BYTES: u64 = 32 * 1024 * 1024;

fn default_index_cache() -> usize {
    INDEX_CACHE
}

fn default_index_table_bytes() -> usize {
    INDEX_TABLE_BYTES
}

fn default_journal_keep_bytes() -> u64 {
    JOURNAL_KEEP_BYTES
}

/// A node's part in the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    /// Its number among the control members; the map says where it listens.
    pub id: u32,
    /// The folder in which it keeps what it has agreed to.
    pub dir: PathBuf,
    /// How long a node is away before it is replaced in the journal's chains, in seconds.
    #[serde(default = "default_replace_after")]
    pub replace_after_secs: u64,
    /// How long a device is away before it is out, in seconds: from then on what is on it may be put elsewhere.
    #[serde(default = "default_out_after")]
    pub out_after_secs: u64,
    /// With more devices away or out than this none is marked out before a person has looked at it. Not said: a quarter
    /// of all, and no more than the largest fault domain has, but always one. Whichever member leads goes by its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_most: Option<usize>,
    /// A partition with more objects is split.
    #[serde(default = "default_split_objects")]
    pub split_objects: u64,
    /// So is one to which more requests come in a second.
    #[serde(default = "default_split_requests")]
    pub split_requests: u64,
    /// Two neighbours with fewer objects together are merged, unless many requests come to them.
    #[serde(default = "default_merge_objects")]
    pub merge_objects: u64,
}

fn default_split_objects() -> u64 {
    PartitionLimits::DEFAULT.split_objects
}

fn default_split_requests() -> u64 {
    PartitionLimits::DEFAULT.split_requests
}

fn default_merge_objects() -> u64 {
    PartitionLimits::DEFAULT.merge_objects
}

fn default_replace_after() -> u64 {
    60
}

fn default_out_after() -> u64 {
    OutLimits::DEFAULT.after.as_secs()
}

/// One device of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Its number in the map.
    pub no: DeviceNo,
    /// Block device or file.
    pub path: PathBuf,
    /// Whether a write is durable only after a flush.
    #[serde(default)]
    pub cache: CacheMode,
    /// It is cleaned when no more extents than so many are free; if nothing is said, as the engine thinks best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_from: Option<u32>,
}

/// Whether a device's write cache loses data when the power goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Ask the kernel.
    #[default]
    Auto,
    /// It does: flush.
    Volatile,
    /// It does not: a completed write is durable.
    None,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{path} is not a node configuration: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
}

impl Config {
    /// Reads a file; makes its paths absolute.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config: Config = toml::from_str(&text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            message: e.to_string(),
        })?;
        if let Some(message) = config.wrong() {
            return Err(ConfigError::Parse {
                path: path.to_owned(),
                message,
            });
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        config.map = folder.join(&config.map);
        if let Some(control) = &mut config.control {
            control.dir = folder.join(&control.dir);
        }
        for device in &mut config.devices {
            device.path = folder.join(&device.path);
        }
        Ok(config)
    }

    /// What is wrong with a number of it, if something is.
    fn wrong(&self) -> Option<String> {
        if !INDEX_TABLE_RANGE.contains(&self.index_table_bytes) {
            let (least, most) = (INDEX_TABLE_RANGE.start(), INDEX_TABLE_RANGE.end());
            let got = self.index_table_bytes;
            return Some(format!(
                "index_table_bytes is {got}; it takes {least} to {most}"
            ));
        }
        let AuditConfig {
            pass_secs,
            floor,
            most,
            away_most,
            p99_percent,
            ..
        } = self.audit;
        // To take it for said and go by another number would be worse than to stop.
        if let Some(most) = away_most {
            return Some(format!(
                "away_most of [audit] is no more: the control plane decides which devices are out. Say \
                 away_most = {most} in [control] of all nodes that are members of it, and remove it from \
                 [audit]"
            ));
        }
        if pass_secs == 0 {
            return Some(
                "pass_secs of [audit] is 0: say in how many seconds all is to be read, or on = false"
                    .into(),
            );
        }
        // With none at all whatever chance does would be harm.
        if !PERCENT_RANGE.contains(&p99_percent) {
            let (least, most) = (PERCENT_RANGE.start(), PERCENT_RANGE.end());
            return Some(format!(
                "p99_percent of [audit] is {p99_percent}; it takes {least} to {most}"
            ));
        }
        // A floor of nothing would leave what has lost shards to whoever is not busy.
        if floor == 0 || floor > most {
            return Some(format!(
                "floor of [audit] is {floor} bytes a second; it takes 1 to what most says, {most}"
            ));
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_told() {
        let wrong = |more: &str| {
            let text = format!("node = 1\nmap = \"map.json\"\ndevice = []\n{more}");
            toml::from_str::<Config>(&text).unwrap().wrong()
        };
        assert_eq!(wrong(""), None);
        assert_eq!(wrong("[audit]\npass_secs = 1\nfloor = 5\nmost = 5\n"), None);
        let control = "[control]\nid = 1\ndir = \"c\"\naway_most = 0\nout_after_secs = 0\n";
        assert_eq!(wrong(control), None);
        for (more, told) in [
            ("index_table_bytes = 1\n", "index_table_bytes"),
            ("[audit]\npass_secs = 0\n", "pass_secs"),
            ("[audit]\nfloor = 0\n", "floor"),
            ("[audit]\np99_percent = 0\n", "p99_percent"),
            ("[audit]\np99_percent = 2000\n", "p99_percent"),
            ("[audit]\nfloor = 5\nmost = 4\n", "floor"),
            ("[audit]\naway_most = 1\n", "away_most = 1 in [control]"),
        ] {
            let said = wrong(more).unwrap_or_default();
            assert!(said.contains(told), "{more}: {said}");
        }
    }
}

//! `ashlar cluster join`: a new node and its devices go into the map.
//!
//! Invariants:
//! - nothing is formatted and no node is started: what is to be done next is said;
//! - everything that can be checked here is checked before the token is spent;
//! - the names of the devices follow from the token: the same command, said again because its answer was lost,
//!   asks for the same, which the control plane takes for what it is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ashlar_cluster_map::{ClusterMap, Core, Device, Domains, Node};
use ashlar_layout::ids::{DeviceNo, NodeId};
use ashlar_node_control::Token;
use ashlar_node_daemon::AuditConfig;
use ashlar_node_daemon::config::{self, CacheMode, Config, DeviceConfig};
use clap::Args;

use crate::cluster::{Labels, parse_node};
use crate::cluster_call::{self, Control};
use crate::fail::Fail;
use crate::map_spec::{DeviceSpec, NodeSpec, Spec};
use crate::output::{self, parse_size};
use crate::rig::write_whole;
use crate::{locate, map_spec};

/// The configuration's file.
const CONFIG_FILE: &str = "node.toml";
/// Bytes of the buffer pool of each core.
const POOL_BYTES: usize = 64 << 20;

/// Who joins.
#[derive(Args)]
pub struct JoinArgs {
    /// The token, as 'ashlar cluster token' has made it.
    #[arg(long, env = "ASHLAR_TOKEN", hide_env_values = true)]
    token: String,
    /// The number of the new node: one that no node has or ever had.
    #[arg(long, value_name = "N", value_parser = parse_node)]
    node: NodeId,
    /// Where one of its cores listens; once for each core, in order.
    #[arg(long = "address", required = true, value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// A device: its number in the cluster, its size, the core that owns it (0 unless said), and its path if
    /// that is known. Once for each.
    #[arg(long = "device", required = true, value_name = "NO:SIZE[:CORE][=PATH]")]
    devices: Vec<JoinDevice>,
    #[command(flatten)]
    labels: Labels,
    /// The folder for the node's map.json and node.toml.
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
}

/// A device that comes with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct JoinDevice {
    no: DeviceNo,
    size: u64,
    core: u32,
    path: Option<PathBuf>,
}

impl FromStr for JoinDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<JoinDevice, String> {
        let wrong = || {
            format!(
                "'{text}' is not a device: it takes NO:SIZE[:CORE][=PATH], such as 7:4T:0=/dev/sdb"
            )
        };
        let (numbers, path) = match text.split_once('=') {
            Some((_, "")) => return Err(wrong()),
            Some((numbers, path)) => (numbers, Some(PathBuf::from(path))),
            None => (text, None),
        };
        let mut parts = numbers.split(':');
        let no = parts.next().and_then(|no| no.parse().ok());
        let no = no.filter(|no| *no > 0).ok_or_else(wrong)?;
        let size = parse_size(parts.next().ok_or_else(wrong)?)?;
        let core = match parts.next() {
            Some(core) => core.parse().map_err(|_| wrong())?,
            None => 0,
        };
        if parts.next().is_some() {
            return Err(wrong());
        }
        let no = DeviceNo(no);
        Ok(JoinDevice {
            no,
            size,
            core,
            path,
        })
    }
}

/// Adds a node to the map, and says what to do next.
pub fn join(
    args: &JoinArgs,
    cluster: Option<&Path>,
    control: &[String],
    json: bool,
) -> Result<(), Fail> {
    let token: Token = args
        .token
        .parse()
        .map_err(|e| Fail::Usage(format!("--token: {e}")))?;
    let folder = Folder::look(&args.out, &token, args.node)?;
    let control = reach(&token, cluster, control)?;
    check(args, &control.newest_map()?)?;
    let (node, devices) = described(args, &token);
    let epoch = control.join(token, node, devices)?;
    let map = control.newest_map()?;
    folder.write(args, &map)?;
    if json {
        return output::json(&serde_json::json!({
            "cluster": map.cluster, "node": args.node, "epoch": epoch,
            "map": folder.map(), "config": folder.config(),
        }));
    }
    output::line(&format!(
        "node {} is in cluster {}, map of epoch {epoch}",
        args.node, map.cluster
    ))?;
    next(args, &folder)
}

/// The control plane of the token's cluster, at the addresses that were named, or that a map names.
fn reach(token: &Token, cluster: Option<&Path>, control: &[String]) -> Result<Control, Fail> {
    let addresses = if control.is_empty() {
        let map = locate::map(cluster).map_err(|error| match error {
            Fail::Usage(_) => Fail::Usage(
                "where is the cluster? Name its control members with --control host:port,… or its map with --cluster"
                    .into(),
            ),
            other => other,
        })?;
        if map.cluster != token.cluster {
            return Err(Fail::Refused(format!(
                "the token is for cluster {}, and the map that was named is of cluster {}: name the one that is \
                 meant",
                token.cluster, map.cluster
            )));
        }
        cluster_call::members(&map)?
    } else {
        control.to_vec()
    };
    Control::at(token.cluster, addresses)
}

/// What is wrong with the node whatever the others are.
fn check(args: &JoinArgs, map: &ClusterMap) -> Result<(), Fail> {
    let device = |d: &JoinDevice| DeviceSpec {
        no: d.no,
        core: d.core,
        size: d.size,
    };
    let spec = Spec {
        class: map.class,
        domain: map.domain,
        stripe_data: map.stripe_data,
        nodes: vec![NodeSpec {
            id: args.node,
            domains: args.labels.clone().over(Domains::default()),
            cores: args.addresses.clone(),
            control: None,
            devices: args.devices.iter().map(device).collect(),
        }],
    };
    let level = map_spec::label(map.domain);
    spec.check().map_err(|error| match (error, level) {
        (map_spec::SpecError::NoLabel { node, .. }, Some(level)) => Fail::Usage(format!(
            "this cluster keeps shards apart by {level}, and node {node} has none: say --{level}"
        )),
        (error, _) => Fail::Usage(error.to_string()),
    })
}

fn described(args: &JoinArgs, token: &Token) -> (Node, Vec<Device>) {
    let core = |address: &String| Core {
        address: address.clone(),
    };
    let device = |d: &JoinDevice| Device {
        no: d.no,
        id: token.device(d.no),
        node: args.node,
        core: d.core,
        size: d.size,
    };
    let node = Node {
        id: args.node,
        domains: args.labels.clone().over(Domains::default()),
        cores: args.addresses.iter().map(core).collect(),
    };
    (node, args.devices.iter().map(device).collect())
}

/// Where the node's files go.
struct Folder {
    dir: PathBuf,
    /// Whether a configuration of this very node is there: it is left as it is.
    configured: bool,
}

impl Folder {
    /// Looks whether the files may be written: nothing of another node or cluster is overwritten.
    fn look(dir: &Path, token: &Token, node: NodeId) -> Result<Folder, Fail> {
        std::fs::create_dir_all(dir).map_err(Fail::io("cannot make", dir))?;
        let dir = dir.canonicalize().map_err(Fail::io("cannot find", dir))?;
        let mut folder = Folder {
            dir,
            configured: false,
        };
        let taken = |path: &Path, why: String| {
            Fail::Refused(format!(
                "{} is there already{why}: name another folder with --out; nothing was changed",
                path.display()
            ))
        };
        let map = folder.map();
        if map.exists() {
            match locate::read_map(&map) {
                Ok(theirs) if theirs.cluster == token.cluster => {}
                Ok(theirs) => {
                    let why = format!(", the map of cluster {}", theirs.cluster);
                    return Err(taken(&map, why));
                }
                Err(_) => return Err(taken(&map, ", and no map".into())),
            }
        }
        let config = folder.config();
        if config.exists() {
            match Config::read(&config) {
                Ok(theirs) if theirs.node == node => folder.configured = true,
                Ok(theirs) => {
                    return Err(taken(&config, format!(", for node {}", theirs.node)));
                }
                Err(_) => return Err(taken(&config, ", and no configuration of a node".into())),
            }
        }
        // A folder that cannot be written to is found out before the token is spent.
        let probe = folder.dir.join(".join.part");
        File::create(&probe)
            .and_then(|_| std::fs::remove_file(&probe))
            .map_err(Fail::io("cannot write in", &folder.dir))?;
        Ok(folder)
    }

    fn map(&self) -> PathBuf {
        self.dir.join(locate::MAP_FILE)
    }

    fn config(&self) -> PathBuf {
        self.dir.join(CONFIG_FILE)
    }

    fn write(&self, args: &JoinArgs, map: &ClusterMap) -> Result<(), Fail> {
        write_whole(&self.map(), &map.to_json())?;
        if self.configured {
            output::note(&format!(
                "{} is there already and stays",
                self.config().display()
            ));
            return Ok(());
        }
        write_whole(&self.config(), config(args)?.as_bytes())
    }
}

fn config(args: &JoinArgs) -> Result<String, Fail> {
    let device = |d: &JoinDevice| DeviceConfig {
        no: d.no,
        path: path(d),
        cache: CacheMode::Auto,
        clean_from: None,
    };
    let config = Config {
        node: args.node,
        map: locate::MAP_FILE.into(),
        devices: args.devices.iter().map(device).collect(),
        pool_bytes: POOL_BYTES,
        spin_us: 0,
        star: false,
        control: None,
        first_cpu: None,
        index_cache: config::INDEX_CACHE,
        index_table_bytes: config::INDEX_TABLE_BYTES,
        journal_keep_bytes: config::JOURNAL_KEEP_BYTES,
        audit: AuditConfig::default(),
    };
    toml::to_string(&config)
        .map_err(|e| Fail::Refused(format!("{CONFIG_FILE} cannot be written: {e}")))
}

/// The path of a device; if it was not said, something that cannot be one.
fn path(device: &JoinDevice) -> PathBuf {
    let said = device.path.as_ref().map(|path| {
        // Said as seen from here; the configuration stands in another folder.
        std::path::absolute(path).unwrap_or_else(|_| path.clone())
    });
    said.unwrap_or_else(|| format!("/dev/disk/by-id/PATH-OF-DEVICE-{}", device.no).into())
}

/// Says what is to be done on the new host.
fn next(args: &JoinArgs, folder: &Folder) -> Result<(), Fail> {
    let (map, config) = (folder.map(), folder.config());
    output::line("Next, on the host of the node:")?;
    output::line(&format!(
        "  1. have {} and {} there, side by side",
        map.display(),
        config.display()
    ))?;
    let open: Vec<String> = args
        .devices
        .iter()
        .filter(|d| d.path.is_none())
        .map(|d| d.no.to_string())
        .collect();
    if !open.is_empty() {
        output::line(&format!(
            "     and write the path of device {} into {CONFIG_FILE}",
            open.join(", ")
        ))?;
    }
    output::line("  2. format each device:")?;
    for device in &args.devices {
        output::line(&format!(
            "       ashlar device format --cluster {} --device-no {} {}",
            map.display(),
            device.no,
            path(device).display()
        ))?;
    }
    output::line(&format!(
        "  3. start the node: ashlar node run --config {}, or the unit in tools/deploy",
        config.display()
    ))?;
    output::line("  4. 'ashlar cluster status' says whether it is heard from")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ashlar_layout::ids::ClusterId;

    fn args(devices: &[&str]) -> JoinArgs {
        JoinArgs {
            token: String::new(),
            node: NodeId(7),
            addresses: vec!["10.0.0.7:7000".into()],
            devices: devices.iter().map(|d| d.parse().unwrap()).collect(),
            labels: Labels::default(),
            out: PathBuf::from("."),
        }
    }

    fn token() -> Token {
        Token::new(ClusterId([1; 16]), [2; 16])
    }

    #[test]
    fn devices_are_read() {
        let device: JoinDevice = "7:256M".parse().unwrap();
        assert_eq!(
            (device.no, device.size, device.core),
            (DeviceNo(7), 256 << 20, 0)
        );
        assert_eq!(device.path, None);
        let device: JoinDevice = "7:4T:3=/dev/disk/by-id/a:b=c".parse().unwrap();
        assert_eq!((device.size, device.core), (4 << 40, 3));
        assert_eq!(device.path, Some("/dev/disk/by-id/a:b=c".into()));
        for text in [
            "", "7", "7:", "0:1G", "x:1G", "7:1X", "7:1G:", "7:1G:x", "7:1G:0:0", "7:1G=", "=x",
            "-1:1G",
        ] {
            assert!(text.parse::<JoinDevice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_same_command_asks_for_the_same() {
        let args = args(&["7:256M", "8:256M"]);
        let (node, devices) = described(&args, &token());
        assert_eq!((node, devices.clone()), described(&args, &token()));
        assert_ne!(devices[0].id, devices[1].id);
        let (_, other) = described(&args, &Token::new(ClusterId([1; 16]), [3; 16]));
        assert_ne!(devices[0].id, other[0].id);
    }

    #[test]
    fn a_configuration_is_made_that_a_node_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG_FILE);
        std::fs::write(&path, config(&args(&["7:256M", "8:1G=/dev/sdb"])).unwrap()).unwrap();
        let config = Config::read(&path).unwrap();
        assert_eq!(config.node, NodeId(7));
        assert_eq!(config.devices[1].path, Path::new("/dev/sdb"));
        assert!(config.devices[0].path.ends_with("PATH-OF-DEVICE-7"));
    }

    #[test]
    fn files_of_others_are_not_overwritten() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("new");
        let look = |node| Folder::look(&dir, &token(), NodeId(node));
        assert!(!look(7).unwrap().configured);
        let path = dir.join(CONFIG_FILE);
        std::fs::write(&path, config(&args(&["7:256M"])).unwrap()).unwrap();
        assert!(look(7).unwrap().configured, "said again");
        let refused = |node| look(node).err().unwrap().to_string();
        assert!(refused(8).contains("for node 7"));
        std::fs::write(&path, "hello").unwrap();
        assert!(refused(7).contains("no configuration"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(dir.join(locate::MAP_FILE), "{}").unwrap();
        assert!(refused(7).contains("no map"));
    }
}

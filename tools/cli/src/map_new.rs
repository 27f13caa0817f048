//! `ashlar map new`: a spec becomes the map of a new cluster, in a file.
//!
//! Invariants:
//! - a map that is written has been solved and validated;
//! - the file is there whole or not at all, and takes the place of another only when told to: the names of
//!   the cluster and its devices stand nowhere else until the devices are formatted.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ashlar_cluster_map::{ClusterMap, ControlMember, Core, Device, Node, solve};
use ashlar_layout::ids::{ClusterId, DeviceId};
use clap::Args;
use serde::Serialize;

use crate::fail::Fail;
use crate::map_show::Summary;
use crate::map_spec::Spec;
use crate::output;
use crate::process::random;

/// Devices whose commands are all printed; of more, those of the first node stand for the rest.
const COMMANDS_MAX: usize = 24;
/// Everybody reads the map: it holds no secret.
const MODE: u32 = 0o644;

/// How to make a map.
#[derive(Args)]
pub struct NewArgs {
    /// What the cluster is to be: a TOML file, such as tools/deploy/cluster.toml.example.
    #[arg(value_name = "SPEC.toml")]
    spec: PathBuf,
    /// The file to write.
    #[arg(long, default_value = crate::locate::MAP_FILE, value_name = "PATH")]
    out: PathBuf,
    /// Repeats the placement of another run; names are random nevertheless. [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Write over a file that is there. What it was the map of cannot be read without it.
    #[arg(long)]
    force: bool,
}

/// What was made, for a script.
#[derive(Serialize)]
struct Made<'a> {
    map: &'a Path,
    seed: u64,
    #[serde(flatten)]
    summary: &'a Summary,
}

/// Makes a map and writes it.
pub fn new(args: &NewArgs, json: bool) -> Result<(), Fail> {
    let spec = Spec::read(&args.spec)?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let map = make(&spec, seed)?;
    write(&args.out, &map.to_json(), args.force)?;
    let summary = Summary::of(&map);
    if json {
        return output::json(&Made {
            map: &args.out,
            seed,
            summary: &summary,
        });
    }
    output::line(&format!(
        "A map of a new cluster, in {}",
        args.out.display()
    ))?;
    summary.print()?;
    output::line(&format!("  placement can be repeated with --seed {seed}"))?;
    next(&map, &args.out)
}

/// A seed that stays exact where numbers of JSON are floating-point.
pub fn random_seed() -> Result<u64, Fail> {
    let mut seed = [0u8; 8];
    random(&mut seed)?;
    Ok(u64::from_le_bytes(seed) >> 12)
}

/// Draws names, places groups and chains, and checks the whole.
pub fn make(spec: &Spec, seed: u64) -> Result<ClusterMap, Fail> {
    let mut cluster = ClusterId::default();
    random(&mut cluster.0)?;
    let mut nodes = Vec::new();
    let mut devices = Vec::new();
    for node in &spec.nodes {
        let address = |address: &String| Core {
            address: address.clone(),
        };
        nodes.push(Node {
            id: node.id,
            domains: node.domains.clone(),
            cores: node.cores.iter().map(address).collect(),
        });
        for device in &node.devices {
            let mut id = DeviceId::default();
            random(&mut id.0)?;
            devices.push(Device {
                no: device.no,
                id,
                node: node.id,
                core: device.core,
                size: device.size,
            });
        }
    }
    let members = spec.nodes.iter().filter_map(|node| {
        Some(ControlMember {
            id: node.id.0,
            address: node.control.clone()?,
        })
    });
    let mut map = ClusterMap {
        nodes,
        devices,
        control: members.collect(),
        ..ClusterMap::bare(cluster, spec.class, spec.stripe_data, spec.domain)
    };
    solve(&mut map, seed)?;
    map.validate().map_err(Fail::Unsound)?;
    Ok(map)
}

fn write(path: &Path, bytes: &[u8], force: bool) -> Result<(), Fail> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let part = || -> io::Result<tempfile::NamedTempFile> {
        let mut part = tempfile::Builder::new()
            .prefix(".map-")
            .suffix(".part")
            .tempfile_in(folder)?;
        part.write_all(bytes)?;
        // Set afterwards, because the umask has no say in it.
        part.as_file()
            .set_permissions(Permissions::from_mode(MODE))?;
        part.as_file().sync_all()?;
        Ok(part)
    };
    let part = part().map_err(Fail::io("cannot write a file for", path))?;
    let written = if force {
        part.persist(path)
    } else {
        part.persist_noclobber(path)
    };
    match written {
        Ok(_) => File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(Fail::io("cannot make durable", path)),
        Err(e) if !force && e.error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Fail::Refused(format!(
                "{} is there already, and a new map is a new cluster, to which no device of the old one \
                 belongs: name another --out, or say --force if the old one is not needed",
                path.display()
            )))
        }
        Err(e) => Err(Fail::io("cannot write", path)(e.error)),
    }
}

/// Says what is to be done with a new map.
fn next(map: &ClusterMap, path: &Path) -> Result<(), Fail> {
    let path = path.display();
    output::line("Next:")?;
    output::line(&format!(
        "  1. copy {path} to every host: all nodes and clients take the same file"
    ))?;
    output::line("  2. format each device, on the host of its node:")?;
    let few = map.devices.len() <= COMMANDS_MAX;
    let first = map.devices.first().map(|d| d.node);
    let mut left = 0;
    for device in &map.devices {
        if !few && Some(device.node) != first {
            left += 1;
            continue;
        }
        output::line(&format!(
            "       ashlar device format --cluster {path} --device-no {} /dev/disk/by-id/…    # node {}",
            device.no, device.node
        ))?;
    }
    if left > 0 {
        output::line(&format!("       and so on for the other {left} devices"))?;
    }
    output::line("  3. write a node.toml for each node; that of the first:")?;
    if let Some(node) = map.nodes.first() {
        output::line(&format!("       node = {}", node.id))?;
        output::line(&format!(
            "       map = \"/var/lib/ashlar/map-{}.json\"    # a copy of its own: the control plane's newer ones go there",
            node.id
        ))?;
        for device in map.devices.iter().filter(|d| d.node == node.id) {
            output::line("       [[device]]")?;
            output::line(&format!("       no = {}", device.no))?;
            output::line("       path = \"/dev/disk/by-id/…\"")?;
        }
    }
    for member in &map.control {
        output::line(&format!(
            "     and in that of node {0}, a member of the control plane: [control], id = {0}, dir = \
             \"/var/lib/ashlar/control-{0}\"",
            member.id
        ))?;
    }
    output::line(
        "  4. start each node: ashlar node run --config node.toml, or the unit in tools/deploy",
    )?;
    output::line(&format!("  5. ashlar --cluster {path} mb ashlar://photos"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/cluster.toml.example");

    fn arguments(folder: &Path, spec: &str) -> NewArgs {
        let path = folder.join("spec.toml");
        std::fs::write(&path, spec).unwrap();
        NewArgs {
            spec: path,
            out: folder.join("map.json"),
            seed: Some(7),
            force: false,
        }
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn the_example_becomes_a_map_that_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let args = arguments(folder.path(), EXAMPLE);
        new(&args, true).unwrap();
        let map = crate::locate::read_map(&args.out).unwrap();
        let spec = Spec::parse(EXAMPLE).unwrap();
        assert_eq!(map.class, spec.class);
        assert_eq!(map.nodes.len(), spec.nodes.len());
        let members = map.control.iter().map(|member| member.id);
        assert_eq!(members.collect::<Vec<_>>(), [1, 3, 5]);
        assert_eq!(files(folder.path()), 2, "only the spec and the map stay");
        let mode = std::fs::metadata(&args.out).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, MODE);
    }

    #[test]
    fn a_seed_repeats_the_placement_and_not_the_names() {
        let spec = Spec::parse(EXAMPLE).unwrap();
        let (a, b, c) = (
            make(&spec, 1).unwrap(),
            make(&spec, 1).unwrap(),
            make(&spec, 2).unwrap(),
        );
        assert_eq!((&a.groups, &a.partitions), (&b.groups, &b.partitions));
        assert_ne!((&a.groups, &a.partitions), (&c.groups, &c.partitions));
        assert_ne!(a.cluster, b.cluster);
        for (mine, other) in a.devices.iter().zip(&b.devices) {
            assert_ne!(mine.id, other.id);
        }
    }

    #[test]
    fn a_map_is_not_overwritten_unless_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let mut args = arguments(folder.path(), EXAMPLE);
        new(&args, true).unwrap();
        let before = std::fs::read(&args.out).unwrap();
        let error = new(&args, true).unwrap_err();
        assert!(matches!(error, Fail::Refused(_)), "{error}");
        assert_eq!(std::fs::read(&args.out).unwrap(), before);
        assert_eq!(files(folder.path()), 2);
        args.force = true;
        new(&args, true).unwrap();
        assert_ne!(std::fs::read(&args.out).unwrap(), before);
    }

    #[test]
    fn what_cannot_be_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let cases = [
            (EXAMPLE.replace("id = 2", "id = 1"), "two nodes"),
            (EXAMPLE.replace("4+2", "40+2"), "class 40+2 needs 42"),
            (
                EXAMPLE.replace("control = \"10.0.0.5:7100\"", ""),
                "2 nodes have a control",
            ),
            ("class = '4+2'".to_owned(), "no devices"),
        ];
        for (spec, says) in cases {
            let args = arguments(folder.path(), &spec);
            let error = new(&args, true).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(files(folder.path()), 1);
        }
        let mut args = arguments(folder.path(), EXAMPLE);
        args.out = folder.path().join("nowhere/map.json");
        assert!(matches!(new(&args, true), Err(Fail::Io { .. })));
        args.spec = folder.path().join("none.toml");
        assert!(matches!(new(&args, true), Err(Fail::Io { .. })));
    }
}

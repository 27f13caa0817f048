//! Which cluster a command talks to: `--cluster`, `ASHLAR_CLUSTER`, or the rig in this folder.

use std::path::{Path, PathBuf};

use ashlar_cluster_map::ClusterMap;

use crate::fail::Fail;

/// The rig's folder unless told otherwise.
pub const RIG_DIR: &str = ".ashlar-rig";
/// The map's file in a rig.
pub const MAP_FILE: &str = "map.json";

/// Reads the cluster's map. A folder stands for the map in it.
pub fn map(cluster: Option<&Path>) -> Result<ClusterMap, Fail> {
    let path = match cluster {
        Some(path) if path.is_dir() => return newest_map(path),
        Some(path) => path.to_owned(),
        None => {
            let here = Path::new(RIG_DIR).join(MAP_FILE);
            if !here.exists() {
                return Err(Fail::Usage(format!(
                    "which cluster? Name its map file or rig folder with --cluster or ASHLAR_CLUSTER, or \
                     start a rig here with 'ashlar rig up' (there is no {})",
                    here.display()
                )));
            }
            here
        }
    };
    match path.parent() {
        Some(rig) if cluster.is_none() => newest_map(rig),
        _ => read_map(&path),
    }
}

/// The rig's folder, if the cluster is one.
pub fn folder(cluster: Option<&Path>) -> Option<PathBuf> {
    let dir = cluster.unwrap_or(Path::new(RIG_DIR));
    dir.join("rig.json").exists().then(|| dir.to_owned())
}

/// The map of a rig's folder, or a newer one that a node of the rig has heard of.
pub fn newest_map(dir: &Path) -> Result<ClusterMap, Fail> {
    let mut map = read_map(&dir.join(MAP_FILE))?;
    let folders = std::fs::read_dir(dir).map_err(Fail::io("cannot read", dir))?;
    for folder in folders.filter_map(Result::ok) {
        let path = folder.path().join(MAP_FILE);
        // What a node keeps is a copy: one that cannot be read is no reason to give up.
        if let Ok(json) = std::fs::read(&path)
            && let Ok(theirs) = ClusterMap::from_json(&json)
            && theirs.cluster == map.cluster
            && theirs.epoch > map.epoch
        {
            map = theirs;
        }
    }
    Ok(map)
}

/// Reads a map's file.
pub fn read_map(path: &PathBuf) -> Result<ClusterMap, Fail> {
    let json = std::fs::read(path).map_err(Fail::io("cannot read the cluster map", path))?;
    ClusterMap::from_json(&json).map_err(|source| Fail::Map {
        path: path.clone(),
        source,
    })
}

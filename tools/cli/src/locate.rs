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
        Some(path) if path.is_dir() => path.join(MAP_FILE),
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
    read_map(&path)
}

/// Reads a map's file.
pub fn read_map(path: &PathBuf) -> Result<ClusterMap, Fail> {
    let json = std::fs::read(path).map_err(Fail::io("cannot read the cluster map", path))?;
    ClusterMap::from_json(&json).map_err(|source| Fail::Map {
        path: path.clone(),
        source,
    })
}

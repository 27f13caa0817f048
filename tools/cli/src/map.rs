//! `ashlar map`: make a cluster's map, and look at one.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::fail::Fail;
use crate::map_new::{self, NewArgs};
use crate::map_show;

/// Make and show cluster maps.
#[derive(Args)]
pub struct MapArgs {
    #[command(subcommand)]
    command: MapCommand,
}

#[derive(Subcommand)]
enum MapCommand {
    /// Make the map of a new cluster from a spec of its hosts and devices.
    New(NewArgs),
    /// Show a map in short; with --json, all of it.
    Show {
        /// A map's file, or a rig's folder. [default: what --cluster names]
        path: Option<PathBuf>,
    },
}

/// Runs a map command.
pub fn run(args: &MapArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    match &args.command {
        MapCommand::New(new) => map_new::new(new, json),
        MapCommand::Show { path } => map_show::show(path.as_deref(), cluster, json),
    }
}

//! `ashlar device`: one device, without a cluster around it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::device_format::FormatArgs;
use crate::fail::Fail;
use crate::{device_format, device_inspect, device_verify, locate};

/// Format, inspect and verify single devices.
#[derive(Args)]
pub struct DeviceArgs {
    #[command(subcommand)]
    command: DeviceCommand,
}

#[derive(Subcommand)]
enum DeviceCommand {
    /// Make a raw device one of ours. Refuses a device that holds anything.
    Format(FormatArgs),
    /// Show what a device says of itself.
    Inspect {
        /// A block device, or a file that stands for one.
        path: PathBuf,
    },
    /// Read every record of a device that is not being served, and check it.
    Verify {
        /// A block device, or a file that stands for one.
        path: PathBuf,
    },
}

/// Runs a device command.
pub fn run(args: DeviceArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    match args.command {
        DeviceCommand::Format(format) => {
            let map = match format.device_no {
                Some(_) => Some(locate::map(cluster)?),
                None => None,
            };
            device_format::format(&format, map.as_ref(), json)
        }
        DeviceCommand::Inspect { path } => device_inspect::inspect(&path, json),
        DeviceCommand::Verify { path } => device_verify::verify(&path, json),
    }
}

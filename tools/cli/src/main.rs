//! The `ashlar` command: rigs, objects, maps, devices, nodes, S3 gateways and their users.
//!
//! Each subcommand has a file of its own. Exit codes: 0 done, 1 failed, 2 the command line makes no sense.

mod address;
mod audit;
mod bench_device;
mod bench_engine;
mod bench_fio;
mod cluster;
mod cluster_call;
mod cluster_change;
mod cluster_join;
mod cluster_move;
mod cluster_status;
mod device;
mod device_format;
mod device_index;
mod device_inspect;
mod device_read;
mod device_verify;
mod durability;
mod durability_plot;
mod fail;
mod gateway;
mod get;
mod list;
mod locate;
mod map;
mod map_new;
mod map_show;
mod map_spec;
mod node;
mod orphans;
mod output;
mod process;
mod put;
mod remove;
mod repair;
mod rig;
mod rig_corrupt;
mod rig_files;
mod rig_gateway;
mod rig_status;
mod rig_up;
mod signature;
mod store;
mod tree;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::address::Address;
use crate::fail::Fail;

/// Ashlar: an object store whose nodes own raw devices.
#[derive(Parser)]
#[command(name = "ashlar", version, propagate_version = true)]
struct Cli {
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The cluster: its map file, or a rig's folder. [default: ./.ashlar-rig]
    #[arg(long, global = true, env = "ASHLAR_CLUSTER", value_name = "PATH")]
    cluster: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start, look at, hurt and remove a store on this machine.
    Rig(rig::RigArgs),
    /// Put a file, a folder or standard input into the store.
    Put(put::PutArgs),
    /// Get an object or a tree of them out of the store.
    Get(get::GetArgs),
    /// List buckets, or keys of a bucket.
    Ls(list::ListArgs),
    /// Remove an object or a tree of them.
    Rm(remove::RemoveArgs),
    /// Show what is known of an object.
    Stat {
        /// ashlar://bucket/key
        address: Address,
    },
    /// Make a bucket.
    Mb {
        /// ashlar://bucket
        address: Address,
    },
    /// Remove an empty bucket.
    Rb {
        /// ashlar://bucket
        address: Address,
    },
    /// List the buckets.
    Buckets,
    /// Look at every shard of every object, and make those again that are missing or rotten.
    Audit(audit::AuditArgs),
    /// Say how durable the store was, as far as that was measured, and how durable a model says that it is.
    Durability(durability::DurabilityArgs),
    /// Say what waits to be mended, and what for.
    Repair(repair::RepairArgs),
    /// Look at and change a running cluster: its control plane, its map, who is in it.
    Cluster(cluster::ClusterArgs),
    /// Make and show cluster maps.
    Map(map::MapArgs),
    /// Format, inspect and verify single devices.
    Device(device::DeviceArgs),
    /// Measure what a device gives, beside fio.
    Bench(bench_device::BenchArgs),
    /// Run a storage node.
    Node(node::NodeArgs),
    /// Run an S3 gateway.
    Gateway(gateway::GatewayArgs),
    /// Make, list and remove users of the S3 gateways.
    User(user::UserArgs),
    /// Say what this machine's kernel offers, and what a node would do without.
    Probe,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn run(cli: Cli) -> Result<(), Fail> {
    let json = cli.json;
    let cluster = cli.cluster.as_deref();
    match cli.command {
        Command::Rig(args) => rig::run(args, json),
        Command::Put(args) => put::put(args, cluster, json),
        Command::Get(args) => get::get(args, cluster, json),
        Command::Ls(args) => list::list(args, cluster, json),
        Command::Rm(args) => remove::remove(args, cluster, json),
        Command::Stat { address } => list::stat(address, cluster, json),
        Command::Mb { address } => list::make_bucket(address, cluster, json),
        Command::Rb { address } => list::remove_bucket(address, cluster, json),
        Command::Buckets => list::buckets(cluster, json),
        Command::Audit(args) => audit::audit(&args, cluster, json),
        Command::Durability(args) => durability::durability(&args, cluster, json),
        Command::Repair(args) => repair::repair(&args, cluster, json),
        Command::Cluster(args) => cluster::run(args, cluster, json),
        Command::Map(args) => map::run(&args, cluster, json),
        Command::Device(args) => device::run(args, cluster, json),
        Command::Bench(args) => bench_device::run(&args, json),
        Command::Node(args) => node::run(&args),
        Command::Gateway(args) => gateway::run(args, cluster, json),
        Command::User(args) => user::run(args, cluster, json),
        Command::Probe => node::probe(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

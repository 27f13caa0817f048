//! `ashlar node run` and `ashlar probe`: one node in the foreground, and what it would find here.

use std::path::PathBuf;

use ashlar_node_daemon::Config;
use clap::{Args, Subcommand};

use crate::fail::Fail;
use crate::output;

/// Run a storage node.
#[derive(Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Subcommand)]
enum NodeCommand {
    /// Run one node in the foreground until SIGTERM or Ctrl-C has drained it.
    Run {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
        /// Leave the session of whoever started it, to outlive that.
        #[arg(long, hide = true)]
        own_session: bool,
    },
}

/// Runs a node command.
pub fn run(args: &NodeArgs) -> Result<(), Fail> {
    match &args.command {
        NodeCommand::Run {
            config,
            own_session,
        } => {
            if *own_session {
                // It fails only if we lead a session already: then there is nothing to leave.
                let _ = rustix::process::setsid();
            }
            let config = Config::read(config)?;
            Ok(ashlar_node_daemon::run(&config)?)
        }
    }
}

/// Says what the kernel offers.
pub fn probe(json: bool) -> Result<(), Fail> {
    let probe = ashlar_node_reactor::probe().map_err(|e| Fail::Refused(e.to_string()))?;
    if json {
        return output::json(&probe);
    }
    output::line(probe.to_string().trim_end())
}

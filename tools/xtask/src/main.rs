//! `cargo xtask`: the automation of this tree, in Rust.
//!
//! - `tidy` checks what the compiler and clippy cannot see; it also runs as a test of this crate.
//! - `fuzz` builds every fuzz target and runs each for some seconds.
//! - `model` goes through the models of the chained journal.
//! - `mutants` lets engines do one thing wrong, and tells which tests notice.
//! - `sim` simulates whole clusters.
//! - `findings` damages a store of any size in all ways, and sees that all of it is found and counted.
//! - `doubt` runs everything that tries to break what is promised, and says what was tried.

mod cargo;
mod doubt;
mod findings;
mod fuzz;
mod model;
mod mutants;
mod sim;
mod tidy;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Automation of the Ashlar tree.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the tree against its own rules: layers, widths, names, forbidden calls, docs that drifted.
    Tidy,
    /// Build every fuzz target and run each for some seconds.
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Only targets whose name contains this.
        #[arg(long, default_value = "")]
        target: String,
        /// List the targets and stop.
        #[arg(long)]
        list: bool,
    },
    /// Go through the models of the chained journal, then see that each mutant is noticed.
    ///
    /// See cluster/model/MODEL.md. `cargo xtask model -- --help` lists the options: larger bounds, one
    /// model only, the shortest way to what does not hold.
    Model {
        /// Options of the model's program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Simulate whole clusters, from fresh seeds.
    ///
    /// `cargo xtask sim --minutes 10`; `cargo xtask sim -- --seed N --trace` shows one run, and `-- --help` lists the
    /// options.
    Sim {
        /// For how long.
        #[arg(long)]
        minutes: Option<u64>,
        /// Options of the simulator's program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Damage shards of a rig in all ways, and see that all of it is found as what it is, made good and counted.
    ///
    /// The same as tests/tests/findings.rs, with as many shards as are asked for: `--shards 2000000` takes 60 GiB.
    Findings {
        /// How many.
        #[arg(long, default_value_t = 200_000)]
        shards: u64,
    },
    /// Let engines do one thing wrong each, and tell which layer of the tests notices.
    Mutants {
        /// Only those whose name contains this.
        #[arg(default_value = "")]
        only: String,
        /// Do not ask the other layers once one has noticed.
        #[arg(long)]
        first: bool,
    },
    /// Run everything that tries to break what is promised, at the size of CI, and say what was tried.
    Doubt {
        /// Seconds for fresh seeds of whole clusters.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

/// The root of the workspace: the folder above `tools/`.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Tidy => run_tidy(),
        Command::Fuzz {
            seconds,
            target,
            list,
        } => fuzz::run(&root(), seconds, &target, list).map_err(|e| e.to_string()),
        Command::Sim { minutes, options } => {
            sim::run(&root(), minutes, &options).map_err(|e| e.to_string())
        }
        Command::Findings { shards } => findings::run(&root(), shards).map_err(|e| e.to_string()),
        Command::Mutants { only, first } => {
            mutants::run(&root(), &only, first).map_err(|e| e.to_string())
        }
        Command::Doubt { seconds } => doubt::run(&root(), seconds).map_err(|e| e.to_string()),
        Command::Model { options } => model::run(&root(), &options).map_err(|e| e.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run_tidy() -> Result<(), String> {
    let tree = tree::Tree::read(&root()).map_err(|e| e.to_string())?;
    let findings = tidy::check(&tree);
    for finding in &findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: {} files, nothing to report", tree.files().len());
        Ok(())
    } else {
        Err(format!(
            "tidy: {} findings in {} files",
            findings.len(),
            tree.files().len()
        ))
    }
}

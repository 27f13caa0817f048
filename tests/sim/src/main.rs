//! `ashlar-tests-sim`: runs seeds.

use std::process::ExitCode;

use ashlar_tests_sim::judge;
use ashlar_tests_sim::plan::Plan;
use clap::Parser;

/// Simulates whole clusters.
#[derive(Parser)]
struct Cli {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Say everything as it happens.
    #[arg(long)]
    aloud: bool,
    /// And what the replicas of this partition say to one another.
    #[arg(long)]
    partition: Option<u32>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut failed = 0;
    for seed in cli.seed..cli.seed + cli.count {
        let report = judge::run_plan(Plan::new(seed), cli.aloud, cli.partition);
        println!(
            "seed {seed}: {} s, {} events, {} operations, hash {:016x}, {:?}",
            report.time / 1_000_000_000,
            report.events,
            report.operations,
            report.hash,
            report.marks
        );
        for wrong in &report.wrong {
            println!("  WRONG {wrong}");
        }
        failed += u64::from(!report.wrong.is_empty());
    }
    if failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

//! `ashlar-tests-sim`: runs seeds, one after the other or for so long, and says what was tried.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ashlar_tests_sim::judge::{self, Report};
use ashlar_tests_sim::plan::Plan;
use ashlar_tests_sim::story;
use clap::Parser;

/// Simulates whole clusters: `cargo xtask sim` runs it.
#[derive(Parser)]
struct Cli {
    /// The first seed. [default: fresh ones]
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds. [default: 1, or as many as there is time for]
    #[arg(long)]
    count: Option<u64>,
    /// For so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Changes the plan of the seed, as a failing run has printed it.
    #[arg(long)]
    set: Vec<String>,
    /// Say everything as it happens, on stderr.
    #[arg(long)]
    trace: bool,
    /// And what the replicas of this partition say to one another.
    #[arg(long)]
    partition: Option<u32>,
    /// Runs to make a failing plan smaller.
    #[arg(long, default_value_t = 60)]
    shrink: u32,
    /// Seeds at a time. [default: as many as there are processors]
    #[arg(long)]
    threads: Option<usize>,
}

/// What all seeds came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    time: u64,
    events: u64,
    operations: u64,
    marks: BTreeMap<&'static str, u64>,
    failed: Vec<(u64, String)>,
}

#[allow(
    clippy::disallowed_methods,
    reason = "fresh seeds are what the clock says; each is printed"
)]
fn fresh() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |d| d.as_millis() as u64 % 1_000_000_000_000 * 1000)
}

fn plan(seed: u64, set: &[String]) -> Result<Plan, String> {
    let mut plan = Plan::new(seed);
    set.iter().try_for_each(|setting| plan.set(setting))?;
    Ok(plan)
}

fn take(cli: &Cli, sum: &Mutex<Sum>, plan: &Plan, report: Report) {
    let mut said = String::new();
    if !report.wrong.is_empty() {
        let smallest = judge::shrink(plan, cli.shrink);
        let report = judge::run_plan(&smallest, false, None);
        let from = report.lines.len().saturating_sub(200);
        for line in &report.lines[from..] {
            said += &format!("{line}\n");
        }
        for wrong in &report.wrong {
            said += &format!("WRONG: {wrong}\n");
        }
        let (seed, settings) = (plan.seed, smallest.settings());
        said += &format!("to see all of it: cargo xtask sim -- --seed {seed} {settings} --trace\n");
    }
    let mut sum = sum
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    sum.seeds += 1;
    sum.time += report.time;
    sum.events += report.events;
    sum.operations += report.operations;
    for (mark, count) in report.marks {
        *sum.marks.entry(mark).or_default() += count;
    }
    if !report.wrong.is_empty() {
        println!(
            "seed {}: {} things are wrong\n{said}",
            report.seed,
            report.wrong.len()
        );
        sum.failed.push((report.seed, report.wrong[0].clone()));
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "how long it runs is said in real time"
)]
fn main() -> ExitCode {
    let cli = Cli::parse();
    let first = cli.seed.unwrap_or_else(fresh);
    if let Err(why) = plan(first, &cli.set) {
        eprintln!("--set: {why}");
        return ExitCode::FAILURE;
    }
    let began = Instant::now();
    let until = cli
        .seconds
        .map(|seconds| began + Duration::from_secs(seconds));
    let count = cli
        .count
        .unwrap_or(if until.is_some() { u64::MAX } else { 1 });
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if cli.trace {
        1
    } else {
        cli.threads.unwrap_or(processors)
    };
    println!("seeds from {first} on, {threads} at a time");
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    let late = until.is_some_and(|until| Instant::now() >= until);
                    if nth >= count || late {
                        return;
                    }
                    let Ok(plan) = plan(first.wrapping_add(nth), &cli.set) else {
                        return;
                    };
                    let report = judge::run_plan(&plan, cli.trace, cli.partition);
                    take(&cli, &sum, &plan, report);
                }
            });
        }
    });
    let sum = sum
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for (mark, count) in &sum.marks {
        println!("  {count:>9} {mark}");
    }
    let hours = sum.time as f64 / 3.6e12;
    story::faults(&sum.marks).for_each(|line| println!("{line}"));
    println!("doubt: {} simulated clusters", sum.seeds);
    println!("doubt: {} histories checked", sum.seeds);
    println!("doubt: {hours:.2} simulated hours");
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    println!("{:.1} simulated hours in a minute", hours / minutes);
    println!("doubt: {} simulated events", sum.events);
    println!(
        "doubt: {} operations checked in simulations",
        sum.operations
    );
    println!("doubt: {} violations", sum.failed.len());
    for (seed, wrong) in &sum.failed {
        println!("seed {seed}: {wrong:.300}");
    }
    if sum.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

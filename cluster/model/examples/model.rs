//! Goes through the models of the chained journal: `cargo xtask model` builds and runs this.
//!
//! Exit code 1: something does not hold (the way to it is printed), a model did not do what it is for, or
//! a mutant lived.

use std::process::ExitCode;
use std::time::Instant;

use ashlar_cluster_model::{Maker, Outcome, Plan, Scale, Search, check, models, walked};
use clap::Parser;

/// Check the replicated journal's models.
#[derive(Parser)]
struct Cli {
    /// Larger bounds: hours.
    #[arg(long)]
    large: bool,
    /// Smaller bounds: seconds.
    #[arg(long, conflicts_with = "large")]
    small: bool,
    /// Only models whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only random walks, of so many steps in each model.
    #[arg(long)]
    only_walks: Option<usize>,
    /// No mutants.
    #[arg(long)]
    no_mutants: bool,
    /// Only mutants.
    #[arg(long)]
    only_mutants: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// States of a model, at most, those that are come upon again included.
    #[arg(long, default_value_t = 1_000_000_000)]
    most: usize,
    /// Breadth first: more memory, but what is found is found by the shortest way.
    #[arg(long)]
    shortest: bool,
    /// Another bound than the model's own, as in `--set ticks=2`; `--set pauses=none` counts no pauses.
    #[arg(long, value_name = "BOUND=NUMBER")]
    set: Vec<String>,
    /// Where random walks begin.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Print the way to each mutant's end.
    #[arg(long)]
    traces: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let scale = match (cli.small, cli.large) {
        (true, _) => Scale::Small,
        (_, true) => Scale::Large,
        _ => Scale::Usual,
    };
    let makers: Vec<_> = models()
        .into_iter()
        .filter(|(name, _)| name.contains(&cli.only))
        .collect();
    let mut failed = false;
    let mut total = 0;
    let began = Instant::now();
    for maker in makers.iter().filter(|_| !cli.only_mutants) {
        match model(&cli, scale, maker) {
            Ok(unique) => total += unique,
            Err(why) => {
                eprintln!("{}: {why}", maker.0);
                failed = true;
            }
        }
    }
    if !cli.only_mutants {
        println!(
            "{total} unique states in {:.0} s",
            began.elapsed().as_secs_f64()
        );
        println!("doubt: {total} unique states of models");
    }
    if !cli.no_mutants {
        failed |= !mutants(&cli, &makers);
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Goes through a model, then walks through larger bounds of it. The states that it has.
fn model(cli: &Cli, scale: Scale, (name, make): &Maker) -> Result<usize, String> {
    let begun = Instant::now();
    let mut plan = make(scale);
    for bound in &cli.set {
        plan.set(bound)?;
    }
    let walks = cli.only_walks.unwrap_or(plan.walks);
    if cli.only_walks.is_some() {
        return walk(cli, name, make, walks).map(|()| 0);
    }
    let search = if cli.shortest {
        Search::Shortest
    } else {
        Search::Whole
    };
    let outcome = check(plan, cli.threads, search, cli.most)?;
    let Outcome {
        unique,
        generated,
        depth,
        seen,
        missing,
        ..
    } = &outcome;
    println!(
        "{name}: {unique} unique states, depth {depth}, {:.1} s ({generated} steps), {seen:?}",
        begun.elapsed().as_secs_f64()
    );
    report(&outcome)?;
    if !outcome.whole {
        return Err(format!(
            "NOT ALL of it was gone through: more than {} steps",
            cli.most
        ));
    }
    if !missing.is_empty() {
        return Err(format!(
            "never happened, though it should: {missing:?}; it begins with {}",
            outcome.begins
        ));
    }
    walk(cli, name, make, walks)?;
    Ok(*unique)
}

/// Walks at random through a model's largest bounds.
fn walk(cli: &Cli, name: &str, make: &fn(Scale) -> Plan, steps: usize) -> Result<(), String> {
    if steps == 0 {
        return Ok(());
    }
    for forgets in [false, true] {
        let begun = Instant::now();
        let plan = walked(make, forgets);
        if plan.forgets && !forgets {
            // It always does.
            continue;
        }
        let outcome = check(plan, cli.threads, Search::Walks(cli.seed), steps)?;
        println!(
            "{name}: random walks{} of {} steps in all, the longest {}, {:.1} s, {:?}",
            if forgets {
                ", with logs that forget,"
            } else {
                ""
            },
            outcome.generated,
            outcome.depth,
            begun.elapsed().as_secs_f64(),
            outcome.seen,
        );
        report(&outcome)?;
    }
    Ok(())
}

/// Prints the way to what does not hold.
fn report(outcome: &Outcome) -> Result<(), String> {
    let Some(trace) = &outcome.failure else {
        return Ok(());
    };
    for (nth, line) in trace.lines.iter().enumerate() {
        eprintln!("  {nth}. {line}");
        if let Some(act) = trace.acts.get(nth) {
            eprintln!("     -> {act:?}");
        }
    }
    Err(format!(
        "DOES NOT HOLD, after {} steps: {}",
        trace.acts.len(),
        trace.property
    ))
}

#[cfg(not(feature = "mutants"))]
fn mutants(_: &Cli, _: &[Maker]) -> bool {
    println!("mutants: this was built without them");
    true
}

/// Steps in which a mutant must be noticed.
#[cfg(feature = "mutants")]
const HUNT: usize = 8_000_000;

/// Each mutant must be noticed by a model.
#[cfg(feature = "mutants")]
fn mutants(cli: &Cli, makers: &[Maker]) -> bool {
    use ashlar_cluster_journal::Mutant;
    use ashlar_cluster_model::{hunt, hunter};

    let mutants: Vec<Mutant> = Mutant::ALL
        .into_iter()
        .filter(|mutant| makers.iter().any(|(name, _)| *name == hunter(*mutant)))
        .collect();
    let mut killed = 0;
    for &mutant in &mutants {
        let name = hunter(mutant);
        let begun = Instant::now();
        let outcome = match hunt(Some(mutant), name, cli.seed, cli.most.min(HUNT)) {
            Ok(outcome) => outcome,
            Err(why) => {
                println!("{mutant:?}: {name} did not begin: {why}");
                continue;
            }
        };
        let seconds = begun.elapsed().as_secs_f64();
        let unique = outcome.generated;
        match &outcome.failure {
            Some(trace) => {
                let steps = trace.acts.len();
                println!(
                    "{mutant:?}: killed by {name}: not so that {}, {steps} steps, after {unique} in all, {seconds:.1} s",
                    trace.property
                );
                killed += 1;
                if cli.traces {
                    let _shown = report(&outcome);
                }
            }
            None => println!("{mutant:?}: LIVES in {name}, {unique} steps, {seconds:.1} s"),
        }
    }
    println!("mutants killed {killed}/{}", mutants.len());
    println!("doubt: {killed} mutants of the journal killed");
    killed == mutants.len()
}

//! Everything that tries to break what is promised, at the size of CI, and what was tried by it all.
//!
//! Whatever is run prints lines `doubt: NUMBER THING`; the numbers of each thing are added up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use crate::cargo;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum DoubtError {
    /// A program did not start, or its output could not be read.
    #[error("cannot run {0}: {1}")]
    Start(String, io::Error),
    /// Some failed: they have said how.
    #[error("{0} did not hold; what is printed above says how")]
    Failed(String),
}

/// One part of it.
struct Part {
    name: &'static str,
    arguments: Vec<String>,
}

fn part(name: &'static str, arguments: &str) -> Part {
    let arguments = arguments.split_whitespace().map(str::to_owned).collect();
    Part { name, arguments }
}

/// Runs all of it: the simulations for so many seconds, each fuzz target for as many as in CI.
pub fn run(root: &Path, seconds: u64) -> Result<(), DoubtError> {
    let seeds =
        format!("run --quiet --profile model --package ashlar-tests-sim -- --seconds {seconds}");
    // The builds are those of `.ci/run`, so that what it has left needs no other.
    let parts = [
        part(
            "all tests: crash states, histories, simulations, whole clusters, rigs of real processes",
            "test --quiet --workspace --locked -- --nocapture",
        ),
        Part {
            name: "fresh seeds of whole clusters",
            arguments: seeds.split_whitespace().map(str::to_owned).collect(),
        },
        part("the models and their mutants", "xtask model --small"),
        part("engines that do one thing wrong", "xtask mutants --first"),
        part("the fuzz targets", "xtask fuzz --seconds 4"),
    ];
    let mut sums = BTreeMap::new();
    let mut failed = Vec::new();
    for part in &parts {
        println!("=== {}", part.name);
        let begun = Instant::now();
        if !run_one(root, part, &mut sums)? {
            failed.push(part.name);
        }
        println!("=== ({} s)", begun.elapsed().as_secs());
    }
    println!("=== what was tried");
    for (thing, number) in &sums {
        println!("{number:>14} {thing}");
    }
    println!("{}", summary(&sums, failed.len()));
    if failed.is_empty() {
        Ok(())
    } else {
        Err(DoubtError::Failed(failed.join(", ")))
    }
}

/// The last line.
fn summary(sums: &BTreeMap<String, f64>, failed: usize) -> String {
    let violations = sums
        .get("violations")
        .copied()
        .unwrap_or(0.0)
        .max(failed as f64);
    let images = sums.get("crash images").copied().unwrap_or(0.0);
    // Of each kind of things that are counted by kind there is one number.
    let mut others: BTreeMap<&str, f64> = BTreeMap::new();
    for (thing, number) in sums {
        let (thing, _) = thing.split_once(": ").unwrap_or((thing, ""));
        if !matches!(thing, "violations" | "crash images") {
            *others.entry(thing).or_default() += number;
        }
    }
    let others = others.iter();
    let others: Vec<String> = others
        .map(|(thing, number)| format!("{thing} {number}"))
        .collect();
    format!(
        "crash images {images}, {}, {violations} violations",
        others.join(", ")
    )
}

/// What `.ci/run` sets, where it is not set otherwise: so its builds, and what it has installed, serve here too.
fn surroundings(root: &Path) -> Vec<(&'static str, OsString)> {
    let target = cargo::target(root);
    let mut all: Vec<(&'static str, OsString)> = vec![
        ("CARGO_INCREMENTAL", "0".into()),
        ("CARGO_PROFILE_DEV_DEBUG", "0".into()),
        ("CARGO_PROFILE_MODEL_DEBUG", "0".into()),
        ("ASHLAR_DEMO_MIB", "256".into()),
        ("ASHLAR_CRASH_ROUNDS", "8".into()),
        ("ASHLAR_BIN", target.join("debug/ashlar").into()),
    ];
    let python = target.join("ci/s3/bin/python");
    if python.exists() {
        all.push(("ASHLAR_S3_PYTHON", python.into()));
        all.push(("ASHLAR_S3_CLIENTS", target.join("ci/s3-clients").into()));
    }
    all.retain(|(name, _)| std::env::var_os(name).is_none());
    all
}

fn run_one(root: &Path, part: &Part, sums: &mut BTreeMap<String, f64>) -> Result<bool, DoubtError> {
    let start = |source| DoubtError::Start(part.arguments.join(" "), source);
    let mut child = cargo::command(root)
        .args(&part.arguments)
        .envs(surroundings(root))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.map_err(start)?;
            let line = String::from_utf8_lossy(&line);
            match told(&line) {
                Some((number, thing)) => *sums.entry(thing.to_owned()).or_default() += number,
                None => println!("{line}"),
            }
        }
    }
    Ok(child.wait().map_err(start)?.success())
}

/// What a line says was tried.
fn told(line: &str) -> Option<(f64, &str)> {
    // What stands before it was printed by another test at the same time.
    let (_, said) = line.split_once("doubt: ")?;
    let (number, thing) = said.split_once(' ')?;
    Some((number.parse().ok()?, thing.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_is_added_up() {
        assert_eq!(told("doubt: 12 crash images"), Some((12.0, "crash images")));
        assert_eq!(told("test a ... doubt: 0.5 hours"), Some((0.5, "hours")));
        assert_eq!(told("doubt: many things"), None);
        assert_eq!(told("no doubt"), None);
        let sums = [
            ("crash images", 3.0),
            ("faults: cut", 2.0),
            ("faults: killed", 4.0),
            ("hours", 1.5),
            ("violations", 0.0),
        ];
        let sums = sums
            .map(|(thing, number)| (thing.to_owned(), number))
            .into();
        assert_eq!(
            summary(&sums, 0),
            "crash images 3, faults 6, hours 1.5, 0 violations"
        );
        assert!(summary(&sums, 2).ends_with(", 2 violations"));
    }
}

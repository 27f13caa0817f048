//! Engines that do one thing wrong, and which layer of the tests notices each.
//!
//! They are built with the feature `mutants`, which nothing that ships is. (The journal's mutants are
//! `cargo xtask model`'s.)

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum MutantsError {
    /// A program did not start.
    #[error("cannot run {0}: {1}")]
    Start(String, io::Error),
    /// The tests did not build.
    #[error("the tests of {0} do not build with the feature mutants")]
    Build(&'static str),
    /// A layer fails without any mutant.
    #[error("{0}: it fails though nothing is wrong, so what it notices shows nothing")]
    Healthy(&'static str),
    /// Nobody noticed some.
    #[error("nobody noticed {0}")]
    Survived(String),
}

/// A layer of tests.
struct Layer {
    name: &'static str,
    package: &'static str,
    test: &'static str,
    /// Tests that are left out: those that expect a fault themselves.
    skip: &'static [&'static str],
}

const LAYERS: [Layer; 2] = [
    Layer {
        name: "the engine over a simulated disk",
        package: "ashlar-node-engine",
        test: "engine",
        skip: &["canary"],
    },
    Layer {
        name: "whole clusters",
        package: "ashlar-tests-sim",
        test: "corpus",
        skip: &["noticed", "twice"],
    },
];

/// As `ashlar_node_engine::mutants` has them.
const MUTANTS: [&str; 18] = [
    "SkipFlush",
    "AcknowledgeEarly",
    "WriteNotDurable",
    "TrustLength",
    "DropReadCheck",
    "ReuseIncarnation",
    "FreeTombstones",
    "Resurrect",
    "EraseEarly",
    "TurnIndexEarly",
    "ForgetTombstones",
    "CopyUnchecked",
    "CopyDeleted",
    "ForgetUnseen",
    "ForgetGraves",
    "CleanUnseen",
    "CarryRegardless",
    "TakeTheLast",
];

/// Runs all of them, or those whose name contains `only`, and prints the table. With `first` a layer is not asked once
/// another one has noticed.
pub fn run(root: &Path, only: &str, first: bool) -> Result<(), MutantsError> {
    let mut programs = Vec::new();
    for layer in &LAYERS {
        // A mutant that the first does not notice is rare: then the others are built.
        let program = if first && !programs.is_empty() {
            None
        } else {
            Some(healthy(root, layer)?)
        };
        programs.push((layer, program));
    }
    println!(
        "| mutant | {} |",
        LAYERS.map(|layer| layer.name).join(" | ")
    );
    println!("|---|---|---|");
    let mut survived = Vec::new();
    let chosen: Vec<&str> = MUTANTS.into_iter().filter(|it| it.contains(only)).collect();
    for mutant in &chosen {
        let mut noticed = false;
        let mut words = Vec::new();
        for (layer, program) in &mut programs {
            if first && noticed {
                words.push("not asked");
                continue;
            }
            let program = match program {
                Some(program) => program,
                none => none.insert(healthy(root, layer)?),
            };
            let notices = !passes(root, layer, program, Some(mutant))?;
            words.push(if notices { "noticed" } else { "" });
            noticed |= notices;
        }
        println!("| `{mutant}` | {} |", words.join(" | "));
        if !noticed {
            survived.push(*mutant);
        }
    }
    println!(
        "doubt: {} mutants of the engine killed",
        chosen.len() - survived.len()
    );
    if survived.is_empty() {
        Ok(())
    } else {
        Err(MutantsError::Survived(survived.join(", ")))
    }
}

/// Builds a layer's tests, and sees to it that they pass as long as nothing is wrong; where the program is.
fn healthy(root: &Path, layer: &Layer) -> Result<PathBuf, MutantsError> {
    let program = build(root, layer)?;
    if passes(root, layer, &program, None)? {
        Ok(program)
    } else {
        Err(MutantsError::Healthy(layer.name))
    }
}

/// Builds a layer's tests; where the program is.
fn build(root: &Path, layer: &Layer) -> Result<PathBuf, MutantsError> {
    let output = cargo::command(root)
        .args([
            "test",
            "--no-run",
            "--profile",
            "model",
            "--message-format",
            "json",
        ])
        .args(["--package", layer.package, "--features", "mutants"])
        .args(["--test", layer.test])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| MutantsError::Start("cargo test".to_owned(), e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The package's own program is built as well.
    let tests = text
        .lines()
        .filter(|line| line.contains("\"kind\":[\"test\"]"));
    let mut programs = tests.filter_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        let (path, _) = rest.split_once('"')?;
        Some(PathBuf::from(path))
    });
    let program = programs.next().filter(|_| output.status.success());
    program.ok_or(MutantsError::Build(layer.package))
}

fn passes(
    root: &Path,
    layer: &Layer,
    program: &Path,
    mutant: Option<&str>,
) -> Result<bool, MutantsError> {
    let mut command = Command::new(program);
    for skipped in layer.skip {
        command.args(["--skip", skipped]);
    }
    if let Some(mutant) = mutant {
        command.env("ASHLAR_MUTANT", mutant);
    }
    let status = command
        .current_dir(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let status = status.map_err(|e| MutantsError::Start(program.display().to_string(), e))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that the engine does not know would end its tests, and pass for noticed.
    #[test]
    fn all_mutants_of_the_engine_are_named() {
        let path = crate::root().join("node/engine/src/mutants.rs");
        let text = std::fs::read_to_string(path).expect("the engine has mutants");
        let known = text.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("Mutant::")?;
            name.strip_suffix(',')
        });
        assert_eq!(known.collect::<Vec<_>>(), MUTANTS);
    }
}

//! Builds and runs the fuzz targets with nothing but the stable toolchain and a C++ compiler.
//!
//! A fuzz crate is a folder called `fuzz` with its own `Cargo.toml` (a workspace of its own) whose
//! binaries are libFuzzer targets. The coverage counters are switched on by LLVM options that the
//! stable compiler takes; what `cargo fuzz` adds (the address sanitizer) watches unsafe code, and
//! the decoders have none.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo;
use crate::tree::{Tree, TreeError};

/// Coverage for libFuzzer: edge counters, comparisons, and overflow checks as in a debug build.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks \
    -Ccodegen-units=1 --cfg fuzzing";

/// The target that has to fail: if nothing is found there, nothing would be found elsewhere.
const CANARY: &str = "canary";
/// How long it may take, in seconds: it ends with what it finds.
const CANARY_SECONDS: u32 = 120;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum FuzzError {
    /// The tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// There is nothing to fuzz.
    #[error("no fuzz target matches '{0}'")]
    NoTarget(String),
    /// A program did not start.
    #[error("cannot run {program}: {source}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A crate did not build.
    #[error("the fuzz targets of {0} do not build")]
    Build(String),
    /// Targets failed; the inputs that broke them are kept.
    #[error("fuzz targets failed: {0}; their inputs are under target/fuzz/artifacts")]
    Failed(String),
}

/// Runs every target whose name contains `only` for `seconds`.
pub fn run(root: &Path, seconds: u32, only: &str, list: bool) -> Result<(), FuzzError> {
    let tree = Tree::read(root)?;
    let targets = targets(&tree, only);
    if targets.is_empty() {
        return Err(FuzzError::NoTarget(only.to_owned()));
    }
    if list {
        targets
            .iter()
            .for_each(|t| println!("{} ({})", t.name, t.folder));
        return Ok(());
    }
    let target_dir = target_dir(root);
    let mut built: Vec<&str> = Vec::new();
    let mut failed = Vec::new();
    for target in &targets {
        if !built.contains(&target.folder.as_str()) {
            build(root, &target.folder, &target_dir)?;
            built.push(&target.folder);
        }
        if !run_one(root, target, &target_dir, seconds)? {
            failed.push(target.name.clone());
        }
    }
    println!(
        "fuzz: {} targets, {seconds} s each, {} failed",
        targets.len(),
        failed.len()
    );
    if failed.is_empty() {
        Ok(())
    } else {
        Err(FuzzError::Failed(failed.join(", ")))
    }
}

struct Target {
    /// The fuzz crate's folder.
    folder: String,
    /// The binary.
    name: String,
}

/// The binaries that the manifests of fuzz crates name.
fn targets(tree: &Tree, only: &str) -> Vec<Target> {
    let mut found = Vec::new();
    for (folder, file) in tree
        .manifests()
        .filter(|(folder, _)| folder.ends_with("/fuzz"))
    {
        let manifest: toml::Table = file.text.parse().unwrap_or_default();
        let bins = manifest
            .get("bin")
            .and_then(toml::Value::as_array)
            .into_iter()
            .flatten();
        let names = bins.filter_map(|bin| bin.get("name")?.as_str());
        for name in names.filter(|name| name.contains(only)) {
            found.push(Target {
                folder: folder.to_owned(),
                name: name.to_owned(),
            });
        }
    }
    found
}

fn target_dir(root: &Path) -> PathBuf {
    cargo::target(root).join("fuzz")
}

fn build(root: &Path, folder: &str, target_dir: &Path) -> Result<(), FuzzError> {
    let flags = FLAGS.split_whitespace().collect::<Vec<_>>().join(" ");
    // An explicit target keeps the flags away from build scripts and procedural macros.
    let status = cargo::command(&root.join(folder))
        .args(["build", "--release", "--bins", "--target", &host()?])
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTFLAGS", flags)
        .status()
        .map_err(|source| FuzzError::Start {
            program: "cargo".to_owned(),
            source,
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(FuzzError::Build(folder.to_owned()))
    }
}

fn run_one(
    root: &Path,
    target: &Target,
    target_dir: &Path,
    seconds: u32,
) -> Result<bool, FuzzError> {
    let program = target_dir.join(host()?).join("release").join(&target.name);
    let start = |source| FuzzError::Start {
        program: program.display().to_string(),
        source,
    };
    let canary = target.name == CANARY;
    let seconds = if canary { CANARY_SECONDS } else { seconds };
    let corpus = target_dir.join("corpus").join(&target.name);
    if canary {
        // It begins with nothing each time.
        let _ = std::fs::remove_dir_all(&corpus);
    }
    let artifacts = target_dir.join("artifacts").join(&target.name);
    std::fs::create_dir_all(&corpus).map_err(start)?;
    std::fs::create_dir_all(&artifacts).map_err(start)?;
    let mut command = Command::new(&program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            "-verbosity=0",
        ])
        .arg(&corpus);
    // Inputs that ship with the tree: golden images, and whatever once broke a decoder.
    let seeds = root.join(&target.folder).join("seeds").join(&target.name);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let output = command.output().map_err(start)?;
    let story = String::from_utf8_lossy(&output.stderr);
    let runs = story
        .lines()
        .find_map(|l| l.strip_prefix("stat::number_of_executed_units:"));
    let runs = runs.map_or("0", str::trim);
    if canary {
        let found = !output.status.success() && story.contains("the canary is found");
        println!(
            "fuzz: the bug that was put there is {}",
            if found { "found" } else { "NOT found" }
        );
        return Ok(found);
    }
    println!("doubt: {runs} fuzzed inputs");
    println!("fuzz: {}: {runs} inputs in {seconds} s", target.name);
    // A target that ran nothing has not passed.
    let passed = output.status.success() && runs != "0";
    if !passed {
        eprintln!("{story}");
    }
    Ok(passed)
}

/// The machine that we build for, in rustc's words.
fn host() -> Result<String, FuzzError> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .map_err(|source| FuzzError::Start {
            program: "rustc".to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.unwrap_or("x86_64-unknown-linux-gnu").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_bins_of_fuzz_crates() {
        let manifest = "[package]\nname = \"ashlar-layout-fuzz\"\n[[bin]]\nname = \"frame\"\n\
            [[bin]]\nname = \"record\"\n";
        let tree = Tree::of(&[
            ("layout/fuzz/Cargo.toml", manifest),
            ("layout/Cargo.toml", manifest),
        ]);
        let names = |only| {
            targets(&tree, only)
                .into_iter()
                .map(|t| t.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(""), ["frame", "record"]);
        assert_eq!(names("rec"), ["record"]);
        assert!(names("none").is_empty());
    }
}

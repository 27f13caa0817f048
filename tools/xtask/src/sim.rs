//! Builds the simulator of whole clusters, and runs it.

use std::io;
use std::path::Path;

use crate::cargo;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// Cargo did not start.
    #[error("cannot run cargo: {0}")]
    Start(#[from] io::Error),
    /// It did not build, or a run showed something wrong: the program has said what.
    #[error("the simulator did not pass; what is printed above says how to see it again")]
    Failed,
}

/// Builds and runs it with these options.
pub fn run(root: &Path, minutes: Option<u64>, options: &[String]) -> Result<(), SimError> {
    let mut cargo = cargo::command(root);
    cargo.args(["run", "--quiet", "--profile", "model"]).args([
        "--package",
        "ashlar-tests-sim",
        "--",
    ]);
    if let Some(minutes) = minutes {
        cargo.args(["--seconds", &minutes.saturating_mul(60).to_string()]);
    }
    if cargo.args(options).status()?.success() {
        Ok(())
    } else {
        Err(SimError::Failed)
    }
}

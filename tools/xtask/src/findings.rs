//! Runs the test of findings at the size that is asked for.

use std::io;
use std::path::Path;

use crate::cargo;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum FindingsError {
    /// Cargo did not start.
    #[error("cannot run cargo: {0}")]
    Start(#[from] io::Error),
    /// It did not build, or something was not found, not counted, or lost: the test has said what.
    #[error("the test of findings did not pass; ASHLAR_KEEP=1 keeps its rig for a look")]
    Failed,
}

/// Builds it optimised, and runs it.
pub fn run(root: &Path, shards: u64) -> Result<(), FindingsError> {
    let mut cargo = cargo::command(root);
    cargo.args(["test", "--release", "--package", "ashlar-tests"]);
    cargo.args(["--test", "findings", "--", "--nocapture"]);
    cargo.env("ASHLAR_FINDINGS_SHARDS", shards.to_string());
    if cargo.status()?.success() {
        Ok(())
    } else {
        Err(FindingsError::Failed)
    }
}

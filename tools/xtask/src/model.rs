//! Builds the program that goes through the models of the chained journal, and runs it.
//!
//! It is built with the journal's mutants, which nothing that ships is; so it is a build of its own,
//! never part of one of the whole workspace.

use std::io;
use std::path::Path;

use crate::cargo;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Cargo did not start.
    #[error("cannot run cargo: {0}")]
    Start(#[from] io::Error),
    /// It did not build, or something does not hold: the program has said what.
    #[error("the models did not pass; what is printed above says which and how")]
    Failed,
}

/// Builds and runs it with these options.
pub fn run(root: &Path, options: &[String]) -> Result<(), ModelError> {
    let status = cargo::command(root)
        .args(["run", "--quiet", "--profile", "model"])
        .args(["--package", "ashlar-cluster-model", "--features", "mutants"])
        .args(["--example", "model", "--"])
        .args(options)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(ModelError::Failed)
    }
}

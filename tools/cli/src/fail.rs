//! What a command ends with when it does not succeed: one line for a person, an exit code for a script.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line makes no sense.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Fail {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// What was asked for is refused, or cannot be; says what to do.
    #[error("{0}")]
    Refused(String),
    /// The operating system refused.
    #[error("{doing} {}: {source}{}", .path.display(), hint(.source))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The map is not one.
    #[error("{}: {source}", .path.display())]
    Map {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: ashlar_cluster_map::MapError,
    },
    /// The spec of a map is not one.
    #[error("{} is not the spec of a cluster: {source}", .path.display())]
    Spec {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: crate::map_spec::SpecError,
    },
    /// A map that was just made breaks a rule.
    #[error("no sound map comes of this: {0}")]
    Unsound(ashlar_cluster_map::MapError),
    /// Placement is impossible.
    #[error(transparent)]
    Solve(#[from] ashlar_cluster_map::SolveError),
    /// An address is not one.
    #[error(transparent)]
    Address(#[from] crate::address::AddressError),
    /// The node could not run.
    #[error(transparent)]
    Daemon(#[from] ashlar_node_daemon::DaemonError),
    /// The node's configuration is wrong.
    #[error(transparent)]
    Config(#[from] ashlar_node_daemon::ConfigError),
    /// The store refused or failed; `what` names the bucket or object.
    #[error("{what}: {source}")]
    Store {
        /// What it was about.
        what: String,
        /// What the client says.
        source: ashlar_node_client::ClientError,
    },
    /// Some of many failed; each has had its own line.
    #[error("{failed} of {total} {things} failed; see the lines above")]
    Some {
        /// So many.
        failed: u64,
        /// Of so many.
        total: u64,
        /// Of what.
        things: &'static str,
    },
    /// The reader of our output has gone: not worth a word.
    #[error("the output was closed")]
    Pipe,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (you may need to be root, or in the device's group)",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (make room, or choose another place)"
        }
        _ => "",
    }
}

impl Fail {
    /// For `map_err`: `doing` `path` failed.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Fail {
        let path = path.to_owned();
        move |source| Fail::Io {
            doing,
            path,
            source,
        }
    }

    /// For `map_err`: the store refused or failed over `what`.
    pub fn store(what: impl Into<String>) -> impl FnOnce(ashlar_node_client::ClientError) -> Fail {
        let what = what.into();
        move |source| Fail::Store { what, source }
    }

    /// For `map_err` on our own output: a closed pipe is no failure worth telling.
    pub fn output(source: io::Error) -> Fail {
        if source.kind() == io::ErrorKind::BrokenPipe {
            Fail::Pipe
        } else {
            Fail::Io {
                doing: "cannot write",
                path: PathBuf::from("standard output"),
                source,
            }
        }
    }

    /// Prints the one line and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if !matches!(self, Fail::Pipe) {
            crate::output::note(&self.to_string());
        }
        match self {
            Fail::Usage(_) | Fail::Address(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

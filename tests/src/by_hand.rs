//! Nodes that a person starts, one process after another, with no rig that knows of them.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::binary;
use crate::rig::{PATIENCE, eventually};

/// A node that runs by the `node.toml` of its folder; it dies with this.
pub struct Process {
    child: Child,
    folder: PathBuf,
}

impl Process {
    /// Starts it; what it says goes to `node.log` beside its configuration.
    pub fn start(folder: &Path) -> Process {
        let log = std::fs::File::create(folder.join("node.log")).expect("a log can be made");
        let child = Command::new(binary::ashlar())
            .args(["node", "run", "--config"])
            .arg(folder.join("node.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("a node can be started");
        Process {
            child,
            folder: folder.to_owned(),
        }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("node.log")).unwrap_or_default()
    }

    /// Waits until it serves.
    pub fn serves(self) -> Process {
        eventually("the node serves", PATIENCE, || {
            self.log().contains("serves").then_some(())
        });
        self
    }

    /// Waits until it has ended; whether it ended well, and what it said.
    pub fn end(mut self) -> (bool, String) {
        let ended = eventually("the node ends", PATIENCE, || {
            self.child.try_wait().expect("a child can be waited for")
        });
        (ended.success(), self.log())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody has, below those that the kernel gives to outgoing connections and those of rigs.
pub fn free_address() -> String {
    free_addresses(1).remove(0)
}

/// So many of them, each another one; no two calls of a process give the same.
pub fn free_addresses(count: usize) -> Vec<String> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Each process begins at a place of its own, for those that are found are not held until they are used.
    let first = 11_000 + (std::process::id() % 500 * 16) as u16;
    let ports = (first..20_000).chain(10_000..first);
    // Held until all are found.
    let free = ports
        .filter(|port| !given.contains(port))
        .filter_map(|port| Some((port, TcpListener::bind(("127.0.0.1", port)).ok()?)));
    let held: Vec<(u16, TcpListener)> = free.take(count).collect();
    assert_eq!(held.len(), count, "some ports are free");
    given.extend(held.iter().map(|(port, _)| *port));
    let ports = held.iter().map(|(port, _)| port);
    ports.map(|port| format!("127.0.0.1:{port}")).collect()
}

//! The node's auditor, beside the data cores: a thread of its own, which reads and mends as any client does.
//!
//! Invariant: nothing here is waited for by a data core, and what it reads goes through the same queues as what others
//! read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::PartitionId;
use ashlar_node_audit::{Known, Options};
use ashlar_node_client::{Client, ClientOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::own_audit::OwnDevices;
use crate::run::DaemonError;
use crate::shared::Shared;

/// Operations of the auditor that are under way at the same time.
const OPERATIONS_MAX: usize = 16;
/// Bytes of buffers that it keeps for the next one.
const BUFFERS_KEPT: usize = 16 << 20;

/// How objects are looked at that nobody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Whether they are.
    pub on: bool,
    /// Seconds from the beginning of one pass to that of the next: in this time every shard is read.
    pub pass_secs: u64,
    /// Seconds for which devices that are away are waited for, where there is margin. What is on them is put elsewhere
    /// then.
    pub wait_secs: u64,
    /// It was said here once, and is refused: [`crate::config::ControlConfig::away_most`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub away_most: Option<usize>,
    /// Bytes a second that a device is read with at the least,
    pub floor: u64,
    /// and at the most.
    pub most: u64,
    /// The 99th percentile of what others wait for the node's devices may be longer by so many hundredths for all that
    /// auditors read of them; they go no slower than at the least for that.
    pub p99_percent: u32,
}

impl Default for AuditConfig {
    fn default() -> AuditConfig {
        AuditConfig {
            on: true,
            pass_secs: 7 * 24 * 60 * 60,
            wait_secs: 15 * 60,
            away_most: None,
            floor: 1 << 20,
            most: 64 << 20,
            p99_percent: 10,
        }
    }
}

/// The thread; it ends when this is dropped.
pub(crate) struct Auditor {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn tell(what: &str) {
    eprintln!("{what}");
}

/// Which partitions the node is the head in office of.
fn leads(shared: &Shared) -> Vec<PartitionId> {
    if shared.stopping.load(Ordering::Relaxed) {
        return Vec::new();
    }
    let reports = shared.reports().into_iter();
    let led = reports.filter(|report| report.load.is_some());
    led.map(|report| report.partition).collect()
}

/// What was agreed on, and why no more was.
fn known(shared: &Shared) -> Known {
    let map = Arc::<ClusterMap>::new(shared.newest().map.clone());
    let held = match map.control.is_empty() {
        true => Some("the map names no control plane, and only that marks devices out".to_owned()),
        false => shared.held(),
    };
    Known { map, held }
}

impl Auditor {
    /// Starts it, if the configuration asks for it.
    pub(crate) fn start(
        config: &Config,
        shared: &Arc<Shared>,
    ) -> Result<Option<Auditor>, DaemonError> {
        let audit = config.audit;
        if !audit.on {
            return Ok(None);
        }
        let options = Options {
            node: config.node,
            pass: Duration::from_secs(audit.pass_secs),
            wait: Duration::from_secs(audit.wait_secs),
            floor: audit.floor,
            most: audit.most,
            tell,
        };
        if shared.newest().map.control.is_empty() {
            tell(
                "the map names no control plane: what is on devices that are away is put nowhere else by itself",
            );
        }
        let system = |what| move |source| DaemonError::System { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("cannot prepare to audit"))?;
        let client = ClientOptions {
            operations_max: OPERATIONS_MAX,
            buffers_kept: BUFFERS_KEPT,
            cache: false,
            patient: true,
            ..ClientOptions::default()
        };
        let client = Client::connect(shared.newest().map.clone(), client)
            .map_err(|error| DaemonError::Config(format!("the auditor: {error}")))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let shared = shared.clone();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                runtime.block_on(async {
                    let devices = Arc::new(OwnDevices(shared.clone()));
                    let leads = || leads(&shared);
                    let known = || known(&shared);
                    tokio::select! {
                        () = ashlar_node_audit::run(client, options, leads, known, devices) => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(system("cannot start a thread"))?;
        Ok(Some(Auditor {
            stop: Some(stop),
            thread: Some(thread),
        }))
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // If it panicked there is nothing left to end.
            let _ = thread.join();
        }
    }
}

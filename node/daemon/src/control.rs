//! The node's part in the control plane, beside the data cores: it follows the cluster map, says that it
//! is there and which of its devices serve, and is a control member itself if its configuration says so.
//!
//! Invariants:
//! - a newer map is in the node's own file before a core works with it: after a restart the node knows at
//!   least what it knew, though no control member be there;
//! - with a map that allows others to write what this program cannot read, the node ends, and does not start again;
//! - nothing here is waited for by a data core: without the control plane they go on with the last map.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::{DeviceNo, Epoch};
use ashlar_layout::version::ENTRY_VERSION;
use ashlar_node_control::{
    ControlClient, ControlConfig as MemberConfig, ControlThread, OutLimits, PartitionLimits,
    Patience, Timing,
};
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::chains::resolve;
use crate::config::Config;
use crate::run::DaemonError;
use crate::shared::{Maps, Shared};

/// How often a node says that it is there.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long one question for a newer map stands.
const WATCH: Duration = Duration::from_secs(10);
/// How long to wait after a control plane that does not answer.
const PAUSE: Duration = Duration::from_millis(200);
/// A core that has not gone round its loop for so long is stuck: it is woken twice a second.
const STUCK: Duration = Duration::from_secs(10);
/// How long a control plane that is electing, or away, is asked before that is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// The threads; they end when this is dropped.
pub(crate) struct Control {
    _member: Option<ControlThread>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Control {
    /// Starts what the map and the configuration ask for. A map without control members never changes.
    pub(crate) fn start(config: &Config, shared: &Arc<Shared>) -> Result<Control, DaemonError> {
        let member = member(config, &shared.newest().map)?;
        let system = |what| move |source| DaemonError::System { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("cannot prepare to follow the cluster map"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (shared, path) = (shared.clone(), config.map.clone());
        let thread = std::thread::Builder::new()
            .name("map".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = follow(&shared, &path) => {}
                        () = beat(&shared) => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(system("cannot start a thread"))?;
        Ok(Control {
            _member: member,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // If it panicked there is nothing left to end.
            let _ = thread.join();
        }
    }
}

/// Starts this node's control member, if it has one.
fn member(config: &Config, map: &ClusterMap) -> Result<Option<ControlThread>, DaemonError> {
    let Some(control) = &config.control else {
        return Ok(None);
    };
    let bad = |message: String| DaemonError::Config(message);
    let named = map.control.iter().find(|m| m.id == control.id);
    let address = named.map(|m| m.address.as_str()).ok_or_else(|| {
        bad(format!(
            "the configuration makes this node control member {}, which the map does not have",
            control.id
        ))
    })?;
    let listen = resolve(address)
        .ok_or_else(|| bad(format!("'{address}' is not an address: it takes host:port")))?;
    let mut member = MemberConfig::new(control.id, listen, control.dir.clone(), map.clone());
    member.timing = Timing {
        patience: Patience {
            replace_after: Duration::from_secs(control.replace_after_secs),
            out: OutLimits {
                after: Duration::from_secs(control.out_after_secs),
                most: control.away_most,
                ..OutLimits::DEFAULT
            },
            partitions: PartitionLimits {
                split_objects: control.split_objects,
                split_requests: control.split_requests,
                merge_objects: control.merge_objects,
                ..PartitionLimits::DEFAULT
            },
            ..Patience::default()
        },
        ..Timing::default()
    };
    let thread = ControlThread::spawn(member).map_err(|e| bad(format!("control plane: {e}")))?;
    Ok(Some(thread))
}

/// Takes each newer map.
async fn follow(shared: &Arc<Shared>, path: &Path) {
    let mut silent = false;
    loop {
        let newest = shared.newest();
        if newest.map.control.is_empty() {
            return std::future::pending().await;
        }
        let client = ControlClient::of(&newest.map).with_patience(PATIENCE);
        match client.watch(newest.map.epoch, WATCH).await {
            Ok(map) => {
                if silent {
                    eprintln!("the control plane answers again");
                }
                silent = false;
                if let Some(map) = map.filter(|map| map.epoch > newest.map.epoch) {
                    take(shared, path, map);
                }
                if shared.refusal().is_some() {
                    return std::future::pending().await;
                }
            }
            Err(e) => {
                if !silent {
                    eprintln!("the map of epoch {} stays in use: {e}", newest.map.epoch);
                }
                silent = true;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A newer map: into the file, then to the cores.
fn take(shared: &Shared, path: &Path, map: ClusterMap) {
    if let Err(e) = map.validate() {
        return eprintln!(
            "the control plane's map of epoch {} is refused: {e}",
            map.epoch
        );
    }
    let json = map.to_json();
    if let Err(e) = replace(path, &json) {
        // It may be older after a restart: then the control plane is asked again.
        eprintln!("cannot keep the map in {}: {e}", path.display());
    }
    if let Err(e) = map.check_reader(ENTRY_VERSION) {
        // All nodes said that they read more: another program was started here since.
        eprintln!("the map of epoch {}: {e}; this node stops", map.epoch);
        return shared.refuse(e);
    }
    let json = Bytes::from(json);
    if shared.adopt(Maps { map, json }) {
        shared.wake();
    }
}

/// Writes a file so that it is there whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut part = PathBuf::from(path);
    part.set_extension("part");
    let mut file = std::fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder)?.sync_all()
}

/// How often cores have gone round their loops, by device, and since when it is so many times.
#[derive(Default)]
struct Rounds(BTreeMap<DeviceNo, (u64, Instant)>);

impl Rounds {
    /// Those of the devices that serve whose cores go round: one that is stuck answers nobody.
    fn alive(&mut self, serving: &[(DeviceNo, u64)], now: Instant) -> Vec<DeviceNo> {
        let before = std::mem::take(&mut self.0);
        for (no, beats) in serving {
            let known = before.get(no).filter(|(known, _)| known == beats);
            let since = known.map_or(now, |(_, since)| *since);
            self.0.insert(*no, (*beats, since));
        }
        let alive = |since: Instant| now.saturating_duration_since(since) < STUCK;
        let all = self.0.iter();
        all.filter_map(|(no, (_, since))| alive(*since).then_some(*no))
            .collect()
    }
}

/// Says again and again that the node is there, how its chains are, and which of its devices serve.
async fn beat(shared: &Arc<Shared>) {
    let mut rounds = Rounds::default();
    let mut client: Option<(Epoch, ControlClient)> = None;
    loop {
        let newest = shared.newest();
        if newest.map.control.is_empty() {
            return std::future::pending().await;
        }
        let known = client.as_ref().map(|(epoch, _)| *epoch);
        if known != Some(newest.map.epoch) {
            let fresh = ControlClient::of(&newest.map).with_patience(PATIENCE);
            client = Some((newest.map.epoch, fresh));
        }
        if let Some((_, client)) = &client
            && !shared.stopping.load(Ordering::Relaxed)
        {
            let serving = rounds.alive(&shared.serving(), Instant::now());
            let told = client.heartbeat(shared.node, shared.reports(), Some(serving));
            // Whoever does not hear us counts us as away: the next beat tells them otherwise.
            shared.hold(match told.await {
                Ok(heard) => heard.held,
                Err(error) => Some(format!("the control plane does not answer: {error}")),
            });
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_core_serves_nothing() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut rounds = Rounds::default();
        let (one, two) = (DeviceNo(1), DeviceNo(2));
        assert_eq!(rounds.alive(&[(one, 5), (two, 5)], at(0)), [one, two]);
        assert_eq!(rounds.alive(&[(one, 6), (two, 5)], at(9)), [one, two]);
        assert_eq!(rounds.alive(&[(one, 6), (two, 5)], at(11)), [one]);
        assert_eq!(rounds.alive(&[(one, 6), (two, 6)], at(20)), [two]);
        assert_eq!(rounds.alive(&[(two, 7)], at(21)), [two]);
        assert_eq!(rounds.alive(&[(one, 6), (two, 8)], at(22)), [one, two]);
    }
}

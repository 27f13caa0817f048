//! Real control members on loopback with real files, each on a runtime of its own, so that one can be killed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ashlar_cluster_map::{ClusterMap, MapChange};
use ashlar_layout::ids::{Epoch, NodeId};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::client::ControlClient;
use crate::member::Timing;
use crate::out::OutLimits;
use crate::policy::Patience;
use crate::server::{ControlConfig, ControlServer, StartError};
use crate::testing;

/// No test waits longer for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Short times, long enough for a machine that is busy with other tests.
pub(crate) const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election: Duration::from_millis(400),
    agreement: Duration::from_secs(3),
    // Nobody is there who refuses; who is late is busy.
    probe: Duration::from_secs(5),
    patience: Patience {
        away_after: Duration::from_millis(700),
        replace_after: Duration::from_millis(1500),
        out: OutLimits {
            after: Duration::from_millis(1500),
            back_after: Duration::from_millis(300),
            most: None,
        },
        partitions: crate::partitions::PartitionLimits::DEFAULT,
    },
};

pub(crate) struct Rig {
    dir: TempDir,
    pub(crate) map: ClusterMap,
    members: Vec<Option<(ControlServer, Runtime)>>,
    pub(crate) snapshot_every: u64,
    runtime: Runtime,
}

impl Rig {
    /// So many members, none of them started.
    pub(crate) fn new(members: usize) -> Rig {
        // All at once, so that each gets another port.
        let listeners: Vec<TcpListener> = (0..members)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses: Vec<String> = listeners
            .iter()
            .map(|l| l.local_addr().unwrap().to_string())
            .collect();
        Rig {
            dir: tempfile::tempdir().unwrap(),
            map: testing::map_with_control(&addresses),
            members: (0..members).map(|_| None).collect(),
            snapshot_every: 1000,
            runtime: Runtime::new().unwrap(),
        }
    }

    /// So many members, all started and founded.
    pub(crate) fn founded(members: usize) -> Rig {
        let mut rig = Rig::new(members);
        (0..members).for_each(|i| rig.start(i));
        rig.until("the founding", |rig| {
            (0..members).all(|i| rig.epoch(i) == Epoch(1) && rig.server(i).counts())
        });
        rig
    }

    pub(crate) fn address(&self, i: usize) -> String {
        self.map.control[i].address.clone()
    }

    pub(crate) fn dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("member{i}"))
    }

    pub(crate) fn start(&mut self, i: usize) {
        let listen = self.address(i).parse().unwrap();
        let mut config = ControlConfig::new(
            self.map.control[i].id,
            listen,
            self.dir(i),
            self.map.clone(),
        );
        config.timing = TIMING;
        config.snapshot_every = self.snapshot_every;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let begun = Instant::now();
        let server = loop {
            match runtime.block_on(ControlServer::start(config.clone())) {
                Ok(server) => break server,
                // The port is still in the hands of a connection that is ending.
                Err(StartError::Listen { source, .. }) => {
                    assert!(begun.elapsed() < DEADLINE, "{source}");
                    std::thread::yield_now();
                }
                Err(error) => panic!("member {i}: {error}"),
            }
        };
        self.members[i] = Some((server, runtime));
    }

    /// Ends a member as a crash does: in the midst of whatever it does, its sockets with it.
    pub(crate) fn kill(&mut self, i: usize) {
        let (server, runtime) = self.members[i].take().unwrap();
        // Waits for writes that the kernel has begun, and lets nothing else run on.
        drop(runtime);
        drop(server);
    }

    pub(crate) fn wipe(&self, i: usize) {
        assert!(self.members[i].is_none());
        std::fs::remove_dir_all(self.dir(i)).unwrap();
    }

    pub(crate) fn server(&self, i: usize) -> &ControlServer {
        &self.members[i].as_ref().unwrap().0
    }

    pub(crate) fn is_up(&self, i: usize) -> bool {
        self.members[i].is_some()
    }

    /// The epoch that a member knows of.
    pub(crate) fn epoch(&self, i: usize) -> Epoch {
        let state = self.server(i).watch();
        state.borrow().epoch()
    }

    /// Who says of itself that it leads. More than one may, for a while.
    pub(crate) fn leader(&self) -> usize {
        let mut leader = None;
        self.until("a leader", |rig| {
            leader = (0..rig.members.len()).find(|i| rig.is_up(*i) && rig.server(*i).leads());
            leader.is_some()
        });
        leader.unwrap()
    }

    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut(&Rig) -> bool) {
        let begun = Instant::now();
        let mut pause = self
            .runtime
            .block_on(async { tokio::time::interval(Duration::from_millis(10)) });
        while !holds(self) {
            assert!(begun.elapsed() < DEADLINE, "waited in vain for {what}");
            self.runtime.block_on(pause.tick());
        }
    }

    pub(crate) fn client(&self) -> Arc<ControlClient> {
        Arc::new(ControlClient::of(&self.map).with_patience(DEADLINE / 2))
    }

    /// A caller of one member only, who gives up soon.
    pub(crate) fn client_of(&self, i: usize) -> ControlClient {
        ControlClient::new(self.map.cluster, vec![self.address(i)])
            .with_patience(Duration::from_secs(2))
    }

    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, work)
                .await
                .expect("it takes no longer than the deadline")
        })
    }

    /// Changes the map, whatever its epoch is; gives the epoch after it.
    pub(crate) fn change(&self) -> Epoch {
        let client = self.client();
        self.run(async {
            let map = client.newest_map().await.unwrap();
            client.change(map.epoch, turn(&map, 1)).await.unwrap()
        })
    }
}

/// A change that can always be made: the node begins to drain, or no longer drains.
pub(crate) fn turn(map: &ClusterMap, node: u32) -> MapChange {
    let node = NodeId(node);
    if map.draining.contains(&node) {
        MapChange::UndrainNode { node }
    } else {
        MapChange::DrainNode { node }
    }
}

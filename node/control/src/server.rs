//! A control member's port, and its start and end.
//!
//! Invariants:
//! - connections are counted before they are served, members' apart from all others': callers cannot keep members from
//!   each other;
//! - memory for what is received is taken from a budget before it is allocated;
//! - nothing is done for a caller before its hello was accepted: the right cluster, and the member that was meant.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use openraft::SnapshotPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::error::{ControlError, WireError};
use crate::host::{Host, Incoming, Socket, System, millis};
use crate::limits::{
    CLIENTS_MAX, ENTRIES_MAX, ENVELOPE_MAX, FRAME_TIME, HELLO_MAX, HELLO_TIME, IDLE_TIME, LOG_KEPT,
    MEMBERS_MAX, REQUESTS_KIB, SNAPSHOT_EVERY, STATE_MAX,
};
use crate::member::{Member, RaftHandle, Timing};
use crate::network::Network;
use crate::state::State;
use crate::storage::{Log, Machine};
use crate::store::{Store, StoreError};
use crate::types::{MemberId, Raft};
use crate::wire::{self, Answer, Call, Who};

/// How a control member is set up.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Its number in the map's list of control members.
    pub id: u32,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The state directory.
    pub dir: PathBuf,
    /// The newest map that this node has: it says which cluster this is and who its control members are, and is the
    /// first map if there is none yet.
    pub map: ClusterMap,
    /// Times.
    pub timing: Timing,
    /// Log entries after which a snapshot is made.
    pub snapshot_every: u64,
    /// Log entries that one message carries, at most.
    pub batch: u64,
}

impl ControlConfig {
    /// A set-up with the usual times.
    pub fn new(id: u32, listen: SocketAddr, dir: PathBuf, map: ClusterMap) -> ControlConfig {
        ControlConfig {
            id,
            listen,
            dir,
            map,
            timing: Timing::default(),
            snapshot_every: SNAPSHOT_EVERY,
            batch: ENTRIES_MAX,
        }
    }
}

/// Why a control member does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The map does not have it.
    #[error("the cluster map has no control member {id}: it has {members:?}")]
    NotAMember {
        /// Its number.
        id: u32,
        /// Those that the map has.
        members: Vec<u32>,
    },
    /// The map is not valid.
    #[error(transparent)]
    Map(#[from] ashlar_cluster_map::MapError),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The port.
    #[error("control member {id} cannot listen on {address}: {source}")]
    Listen {
        /// Its number.
        id: u32,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// openraft does not start.
    #[error("the consensus does not start: {0}")]
    Raft(String),
    /// No thread for it.
    #[error("no thread for the control member: {0}")]
    Thread(std::io::Error),
}

/// A control member, serving. To drop it ends it at once, as a crash would; nothing acknowledged is lost.
#[derive(Debug)]
pub struct ControlServer {
    member: Arc<Member>,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl ControlServer {
    /// Starts it, on the runtime that this is called in.
    pub async fn start(config: ControlConfig) -> Result<ControlServer, StartError> {
        config.map.validate()?;
        let ControlConfig {
            id,
            listen,
            dir,
            map,
            ..
        } = &config;
        let failed = |source| StartError::Listen {
            id: *id,
            address: *listen,
            source,
        };
        let members = map.control.iter().map(|m| m.id);
        if !members.clone().any(|member| member == *id) {
            let (id, members) = (*id, members.collect());
            return Err(StartError::NotAMember { id, members });
        }
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let store = Store::open(dir, map.cluster, *id)?;
        ControlServer::begin(config, store, Arc::new(System), listener, address).await
    }

    /// Starts it with this store, on this machine.
    pub(crate) async fn begin(
        config: ControlConfig,
        store: Store,
        host: Arc<dyn Host>,
        incoming: impl Incoming,
        address: SocketAddr,
    ) -> Result<ControlServer, StartError> {
        let ControlConfig {
            id,
            map,
            timing,
            snapshot_every,
            batch,
            ..
        } = config;
        let members = map.control.iter().map(|m| (m.id, m.address.clone()));
        let members: std::collections::BTreeMap<u32, String> = members.collect();
        let counted = store.counted()?;
        let machine = Machine::open(store.clone())?;
        let seen = machine.watch();
        let raft = Raft::new(
            MemberId::from(id),
            Arc::new(raft_config(timing, snapshot_every, batch)?),
            Network::new(map.cluster, id, timing.heartbeat, host.clone()),
            Log::new(store.clone()),
            machine,
        )
        .await
        .map_err(|e| StartError::Raft(e.to_string()))?;
        raft.runtime_config().elect(counted);
        let member = Arc::new(Member {
            id,
            cluster: map.cluster,
            members,
            timing,
            raft: RaftHandle(raft),
            store,
            seen,
            counted: AtomicBool::new(counted),
            floor: OnceLock::new(),
            watchman: Mutex::new(None),
            started: tokio::time::Instant::now(),
            host,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(crate::founding::found(member.clone()));
        tasks.spawn(crate::founding::recall(member.clone()));
        tasks.spawn(member.clone().duties(map));
        tasks.spawn(accept(incoming, member.clone()));
        Ok(ControlServer {
            member,
            address,
            tasks,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What it knows: the map among it, as soon as there is one, and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.member.seen.clone()
    }

    /// Whether it leads, as far as it knows.
    pub fn leads(&self) -> bool {
        let metrics = self.member.raft.0.metrics();
        let leader = metrics.borrow().current_leader;
        leader == Some(MemberId::from(self.member.id))
    }

    /// Whether it counts in elections: it does not while it has lost its state and has not caught up.
    pub fn counts(&self) -> bool {
        self.member.counts()
    }

    /// The member itself.
    #[cfg(test)]
    pub(crate) fn member(&self) -> &Member {
        &self.member
    }

    /// The index of the last log entry that a snapshot made needless, if any did.
    pub fn purged(&self) -> Option<u64> {
        self.member
            .raft
            .0
            .metrics()
            .borrow()
            .purged
            .map(|l| l.index)
    }

    /// Ends it in good order.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        // It may have failed before: then there is nothing left to end.
        let _ = self.member.raft.0.shutdown().await;
    }
}

fn raft_config(
    timing: Timing,
    snapshot_every: u64,
    batch: u64,
) -> Result<openraft::Config, StartError> {
    let config = openraft::Config {
        cluster_name: "ashlar".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election),
        election_timeout_max: 2 * millis(timing.election),
        install_snapshot_timeout: millis(FRAME_TIME),
        max_payload_entries: batch,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        replication_lag_threshold: snapshot_every.saturating_mul(2),
        max_in_snapshot_log_to_keep: LOG_KEPT.min(snapshot_every / 4),
        ..openraft::Config::default()
    };
    config
        .validate()
        .map_err(|e| StartError::Raft(e.to_string()))
}

/// What callers share.
struct Room {
    clients: Semaphore,
    members: Semaphore,
    requests: Semaphore,
}

async fn accept(mut incoming: impl Incoming, member: Arc<Member>) {
    let room = Arc::new(Room {
        clients: Semaphore::new(CLIENTS_MAX),
        members: Semaphore::new(MEMBERS_MAX),
        requests: Semaphore::new(REQUESTS_KIB),
    });
    // Who has not said hello yet counts as well: it costs a socket and little more.
    let strangers = Arc::new(Semaphore::new(CLIENTS_MAX + MEMBERS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = incoming.next() => match accepted {
                Ok(stream) => {
                    if let Ok(place) = strangers.clone().try_acquire_owned() {
                        let (member, room) = (member.clone(), room.clone());
                        connections.spawn(async move {
                            let _place = place;
                            converse(stream, &member, &room).await;
                        });
                    }
                }
                // Out of descriptors, most likely: it gets better when connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

/// Serves one connection to its end.
async fn converse(mut stream: Socket, member: &Member, room: &Room) {
    let greeted = greet(&mut stream, member).await;
    let who = match greeted {
        Ok(who) => who,
        Err(error) => return dismiss(stream, member, error).await,
    };
    let seats = match who {
        Who::Member(_) => &room.members,
        Who::Client => &room.clients,
    };
    let Ok(_seat) = seats.try_acquire() else {
        return dismiss(stream, member, Some(ControlError::Busy)).await;
    };
    let welcome = Answer::Welcome { member: member.id };
    if send(&mut stream, member, 1, &welcome).await.is_err() {
        return;
    }
    loop {
        if let Err(error) = serve(&mut stream, member, room, who).await {
            return dismiss(stream, member, error).await;
        }
    }
}

/// The hello. An error to say goodbye with, or none if there is nobody to say it to.
async fn greet(stream: &mut Socket, member: &Member) -> Result<Who, Option<ControlError>> {
    let first = wire::in_time("waiting for a hello", HELLO_TIME, async {
        let header = wire::read_header(stream, HELLO_MAX).await?;
        let header = header.ok_or(WireError::Closed)?;
        wire::read_payload(stream, &header).await
    });
    let payload = first.await.map_err(parting)?;
    let Ok(Call::Hello(hello)) = wire::decode::<Call>(&payload) else {
        return Err(Some(ControlError::NoHello));
    };
    if hello.cluster != member.cluster {
        return Err(Some(ControlError::OtherCluster {
            ours: member.cluster,
            theirs: hello.cluster,
        }));
    }
    let ours = member.id;
    if let Some(theirs) = hello.to
        && theirs != ours
    {
        return Err(Some(ControlError::OtherMember { ours, theirs }));
    }
    match hello.who {
        Who::Member(theirs) if theirs == ours || !member.members.contains_key(&theirs) => {
            Err(Some(ControlError::OtherMember { ours, theirs }))
        }
        who => Ok(who),
    }
}

/// One call and its answer.
async fn serve(
    stream: &mut Socket,
    member: &Member,
    room: &Room,
    who: Who,
) -> Result<(), Option<ControlError>> {
    let payload_max = u32::try_from(STATE_MAX + ENVELOPE_MAX).unwrap_or(u32::MAX);
    let header = wire::read_header(stream, payload_max);
    let header = wire::in_time("waiting for a call", IDLE_TIME, header).await;
    let Some(header) = header.map_err(parting)? else {
        return Err(None);
    };
    let kib = header.payload_len / 1024 + 1;
    let budget = room.requests.acquire_many(kib).await.map_err(|_| None)?;
    let payload = wire::read_payload(stream, &header);
    let payload = wire::in_time("receiving a call", FRAME_TIME, payload).await;
    let payload = payload.map_err(parting)?;
    let answer = match wire::decode::<Call>(&payload) {
        Ok(call) => {
            drop(payload);
            // A watch holds nothing while it waits.
            let _budget = (!matches!(call, Call::Watch { .. })).then_some(budget);
            member.answer(who, call).await
        }
        Err(error) => Answer::Failed(ControlError::BadRequest(error.to_string())),
    };
    send(stream, member, header.request, &answer)
        .await
        .map_err(|_| None)
}

/// What to say to a caller before its connection ends.
fn parting(error: WireError) -> Option<ControlError> {
    match error {
        WireError::Io { .. } | WireError::Closed => None,
        error => Some(ControlError::BadFrame(error.to_string())),
    }
}

async fn send(
    stream: &mut Socket,
    member: &Member,
    number: u64,
    answer: &Answer,
) -> Result<(), WireError> {
    let frame = wire::encode(number, member.state().epoch(), answer)?;
    wire::in_time("answering", FRAME_TIME, wire::write(stream, &frame)).await
}

/// Says why, and ends the connection so that it is heard: what the caller still sends is read and thrown away for a
/// while, for an end with bytes unread would take the answer along.
async fn dismiss(mut stream: Socket, member: &Member, error: Option<ControlError>) {
    let Some(error) = error else { return };
    let parting = async {
        send(&mut stream, member, 0, &Answer::Failed(error))
            .await
            .ok()?;
        stream.shutdown().await.ok()?;
        let mut rest = [0; 4096];
        for _ in 0..1024 {
            if stream.read(&mut rest).await.ok()? == 0 {
                break;
            }
        }
        Some(())
    };
    // Whether it was heard or not, the connection ends here.
    let _ = tokio::time::timeout(HELLO_TIME, parting).await;
}

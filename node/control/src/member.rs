//! A control member: what it does with each call.
//!
//! Invariants:
//! - a change is checked against the newest state before it is proposed, and again by the state machine when it
//!   is applied;
//! - it is proposed only after a quorum has confirmed the leader: without one the caller hears so, and nothing was
//!   proposed; if the quorum is lost afterwards, or the leader itself fails, the caller hears that the outcome is open;
//! - a call is passed on once at most, by one who is no leader to one who is;
//! - who has lost what it had stored follows no leader before it knows whom the others follow ([`Member::may_follow`]),
//!   and takes no part in elections before it has caught up ([`Member::vote`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ashlar_cluster_map::{ChangeError, ClusterMap, MapChange};
use ashlar_layout::ids::{ClusterId, DeviceNo, Epoch, NodeId};
use ashlar_layout::time::Instant;
use ashlar_layout::version::{ENTRY_VERSION, ENTRY_VERSION_LEAST};
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use openraft::{BasicNode, Snapshot};
use tokio::sync::watch;

use crate::error::ControlError;
use crate::host::Host;
use crate::limits::{FRAME_TIME, REPORTS_MAX, WATCH_TIME};
use crate::link::{Link, LinkError};
use crate::policy::{ChainReport, Patience, Watchman};
use crate::state::{Command, Outcome, Refusal, State};
use crate::storage::Log;
use crate::store::{Store, StoreError};
use crate::types::{LogId, MemberId, Raft, SnapshotMeta, Types, Vote};
use crate::wire::{Answer, Call, Promise, Who};

/// The times that a member goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader shows the other members that it is there.
    pub heartbeat: Duration,
    /// How long a member waits for that before it stands for election, at least; twice that at most.
    pub election: Duration,
    /// How long a caller waits for a leader, and for a change to be agreed on, each.
    pub agreement: Duration,
    /// How long another member may take to answer whether it is there.
    pub probe: Duration,
    /// When nodes count as away, and when spares take their places.
    pub patience: Patience,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(150),
            election: Duration::from_millis(600),
            agreement: Duration::from_secs(5),
            probe: Duration::from_millis(500),
            patience: Patience::default(),
        }
    }
}

/// Where a call that needs the leader got to.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and nearly all of them are answers"
)]
enum Attempt {
    Answered(Answer),
    /// Nothing was done; another try may find the leader.
    NoLeader,
}

/// What a member that has lost its disk goes by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Floor {
    /// The newest vote of any other member.
    pub(crate) vote: Option<Vote>,
    /// The newest entry of any other's log: what was ever agreed on is no newer.
    pub(crate) last: Option<LogId>,
}

/// A control member at work.
#[derive(Debug)]
pub struct Member {
    pub(crate) id: u32,
    pub(crate) cluster: ClusterId,
    pub(crate) members: BTreeMap<u32, String>,
    pub(crate) timing: Timing,
    pub(crate) raft: RaftHandle,
    pub(crate) store: Store,
    pub(crate) seen: watch::Receiver<Arc<State>>,
    pub(crate) counted: AtomicBool,
    /// What the others had promised, once all have told; asked for only by one who does not count.
    pub(crate) floor: OnceLock<Floor>,
    pub(crate) watchman: Mutex<Option<Watchman>>,
    pub(crate) started: tokio::time::Instant,
    pub(crate) host: Arc<dyn Host>,
}

/// openraft's handle, which has no `Debug` of its own.
pub(crate) struct RaftHandle(pub(crate) Raft);

impl std::fmt::Debug for RaftHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Raft")
    }
}

impl Member {
    /// The time by this member's own count.
    pub(crate) fn now(&self) -> Instant {
        let nanos = self.started.elapsed().as_nanos();
        Instant(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Whether this member counts in elections.
    pub(crate) fn counts(&self) -> bool {
        self.counted.load(Ordering::Acquire)
    }

    /// The newest state that is known here.
    pub(crate) fn state(&self) -> Arc<State> {
        self.seen.borrow().clone()
    }

    fn me(&self) -> MemberId {
        MemberId::from(self.id)
    }

    /// Does what a call asks for.
    pub(crate) async fn answer(&self, who: Who, call: Call) -> Answer {
        let from_member = matches!(who, Who::Member(_));
        match call {
            Call::Append(_) | Call::Vote(_) | Call::Snapshot { .. } if !from_member => {
                Answer::Failed(ControlError::NotForYou)
            }
            Call::Append(request) => self.append(request).await,
            Call::Vote(request) => self.vote(request).await,
            Call::Snapshot { vote, meta, state } => self.snapshot(vote, meta, state).await,
            Call::Hello(_) => bad("a second hello"),
            Call::Ping => self.pong(),
            Call::Map { newest: false } => match self.state().map.clone() {
                Some(map) => Answer::Map(Some(map)),
                None => Answer::Failed(ControlError::NotFounded),
            },
            Call::Watch { after, wait_ms } => self.watch(after, wait_ms).await,
            Call::Status => match self.on_leader(from_member, Call::Status).await {
                Answer::Failed(doubt) if !from_member => {
                    Answer::Status(self.status(Some(doubt)).await)
                }
                answer => answer,
            },
            call => self.on_leader(from_member, call).await,
        }
    }

    // openraft's own calls.

    async fn append(&self, request: AppendEntriesRequest<Types>) -> Answer {
        if !self.may_follow(&request.vote) {
            return Answer::Failed(ControlError::Recovering);
        }
        let (vote, committed) = (request.vote, request.leader_commit);
        match self.raft.0.append_entries(request).await {
            Ok(response) => {
                if matches!(response, AppendEntriesResponse::Success) {
                    self.caught_up(vote, committed).await;
                }
                Answer::Append(response)
            }
            Err(error) => broken(error),
        }
    }

    /// Counts this member in once it holds all that was committed before a leader that it did not vote for committed
    /// an entry of its own.
    async fn caught_up(&self, vote: Vote, committed: Option<LogId>) {
        let Some(committed) = committed else { return };
        if self.counts() || committed.leader_id != vote.leader_id {
            return;
        }
        // A leader that goes on after a restart commits again what was committed already, one piece after the other.
        let newest = self.floor.get().and_then(|floor| floor.last);
        if newest.is_some_and(|newest| committed < newest) {
            return;
        }
        // The same entry there means the same log up to there. (What is there may be of another leader: a heartbeat
        // succeeds whatever the log holds.)
        if !matches!(Log::new(self.store.clone()).holds(committed), Ok(true)) {
            return;
        }
        self.count_in().await;
    }

    /// From now on this member votes, and stands for election. False if that could not be stored.
    pub(crate) async fn count_in(&self) -> bool {
        let stored = self.store.set_counted().await.is_ok();
        if stored {
            self.counted.store(true, Ordering::Release);
            self.raft.0.runtime_config().elect(true);
        }
        stored
    }

    /// Whether it can do no harm to follow the leader of this vote. A member that has lost its disk may have promised
    /// others to follow no leader as old as that one, which would take its word for a quorum.
    fn may_follow(&self, vote: &Vote) -> bool {
        let floor = || self.floor.get();
        let well = || floor().is_some_and(|it| it.vote.is_none_or(|it| *vote >= it));
        self.counts() || well()
    }

    /// The last entry in the log, as it is stored.
    fn last_stored(&self) -> Result<Option<LogId>, StoreError> {
        Log::new(self.store.clone()).last()
    }

    /// A candidate asks for a vote. A member with nothing stored gives one at the founding only: to the founder, which
    /// has nothing but the list of members in its log, while nobody else has more. Otherwise it may have lost what it
    /// once acknowledged, and its vote could make a leader that lacks it. From then on it counts: there was nothing yet
    /// that it could have lost, and whoever leads first may be gone before it was fed.
    async fn vote(&self, request: VoteRequest<MemberId>) -> Answer {
        let counts = self.counts();
        if !counts {
            let founding = matches!(self.last_stored(), Ok(None))
                && self.founder() == Some(request.vote.leader_id.node_id)
                && request.last_log_id.is_some_and(|l| l.index == 0);
            if !founding || !self.nothing_agreed(&request.vote).await {
                return Answer::Failed(ControlError::Recovering);
            }
        }
        match self.raft.0.vote(request).await {
            Ok(response) => {
                if !counts && response.vote_granted {
                    self.count_in().await;
                }
                Answer::Vote(response)
            }
            Err(error) => broken(error),
        }
    }

    async fn snapshot(&self, vote: Vote, meta: SnapshotMeta, state: State) -> Answer {
        if !self.may_follow(&vote) {
            return Answer::Failed(ControlError::Recovering);
        }
        if let Some(map) = &state.map
            && (map.cluster != self.cluster || map.validate().is_err())
        {
            return bad("a snapshot whose map is not ours, or not valid");
        }
        let snapshot = Snapshot {
            meta,
            snapshot: Box::new(state),
        };
        match self.raft.0.install_full_snapshot(vote, snapshot).await {
            Ok(response) => Answer::Snapshot(response),
            Err(error) => broken(error),
        }
    }

    /// Who founds the control plane: the member with the lowest number.
    pub(crate) fn founder(&self) -> Option<MemberId> {
        self.members.keys().next().copied().map(MemberId::from)
    }

    /// What is stored counts, not what openraft has come to know of it since the start; and what cannot be read is not
    /// nothing.
    fn pong(&self) -> Answer {
        let stored = self
            .last_stored()
            .and_then(|last| Ok((last, self.store.vote()?)));
        match stored {
            Ok((last, vote)) => Answer::Pong {
                blank: last.is_none() && vote.is_none(),
                last: last.map(|it| it.index),
                promise: Some(Promise {
                    vote,
                    last,
                    counts: self.counts(),
                }),
            },
            Err(error) => broken(error),
        }
    }

    // Calls that any member answers.

    async fn watch(&self, after: Epoch, wait_ms: u64) -> Answer {
        let time = Duration::from_millis(wait_ms).min(WATCH_TIME);
        let mut seen = self.seen.clone();
        let newer = seen.wait_for(|state| state.epoch() > after);
        match tokio::time::timeout(time, newer).await {
            Ok(Ok(state)) => Answer::Map(state.map.clone()),
            _ => Answer::Map(None),
        }
    }

    // Calls for the leader.

    /// Has the leader answer: this member, or the one it passes the call on to.
    async fn on_leader(&self, from_member: bool, call: Call) -> Answer {
        let deadline = tokio::time::Instant::now() + self.timing.agreement;
        let mut metrics = self.raft.0.metrics();
        let mut alone = false;
        loop {
            let (leader, failed) = {
                let now = metrics.borrow_and_update();
                (now.current_leader, now.running_state.clone().err())
            };
            if let Some(error) = failed {
                return Answer::Failed(ControlError::Broken(error.to_string()));
            }
            let attempt = match leader {
                Some(leader) if leader == self.me() => self.lead(&call, deadline).await,
                _ if from_member => return Answer::Failed(ControlError::NotLeader),
                Some(leader) => self.pass_on(leader, &call).await,
                None => Attempt::NoLeader,
            };
            if let Attempt::Answered(answer) = attempt {
                return answer;
            }
            if from_member {
                return Answer::Failed(ControlError::NotLeader);
            }
            let (away, members) = self.away().await;
            let late = tokio::time::Instant::now() >= deadline;
            // One answer that is late is not an absence: it is looked twice, if there is time.
            let was_alone = std::mem::replace(&mut alone, 2 * away >= members);
            if alone && (was_alone || late) {
                return Answer::Failed(ControlError::NoQuorum { away, members });
            }
            if late {
                return Answer::Failed(if self.state().map.is_some() {
                    ControlError::Electing
                } else {
                    ControlError::NotFounded
                });
            }
            // Until something changes here, or a moment has passed: what changes elsewhere is not told.
            let _ = tokio::time::timeout(self.timing.heartbeat, metrics.changed()).await;
        }
    }

    async fn pass_on(&self, leader: MemberId, call: &Call) -> Attempt {
        let known = u32::try_from(leader).ok();
        let Some((to, address)) = known.and_then(|id| Some((id, self.members.get(&id)?))) else {
            return Attempt::NoLeader;
        };
        let link = match Link::open(&*self.host, address, self.hello(to), self.timing.probe).await {
            Ok(link) => link,
            Err(_) => return Attempt::NoLeader,
        };
        match link.call(call, self.timing.agreement + FRAME_TIME).await {
            Ok((_, Answer::Failed(ControlError::NotLeader))) => Attempt::NoLeader,
            Ok((_, answer)) => Attempt::Answered(answer),
            Err(LinkError::Lost(_)) if call.changes() => {
                let (away, members) = self.away().await;
                Attempt::Answered(Answer::Failed(ControlError::Uncertain { away, members }))
            }
            Err(_) => Attempt::NoLeader,
        }
    }

    /// Answers as the leader, if this member still is that.
    async fn lead(&self, call: &Call, deadline: tokio::time::Instant) -> Attempt {
        if let Call::Heartbeat {
            node,
            chains,
            serving,
            entries,
        } = call
        {
            return self.hear(*node, chains, serving.as_deref(), *entries);
        }
        // A quorum confirms that this is the leader, and the state is as new as any that was ever told of.
        let confirmed = tokio::time::timeout_at(deadline, self.raft.0.ensure_linearizable()).await;
        match confirmed {
            Ok(Ok(_)) => {}
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) | Err(_) => {
                return Attempt::NoLeader;
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_)))) => {
                return Attempt::NoLeader;
            }
            Ok(Err(error)) => return Attempt::Answered(broken(error)),
        }
        if self.state().map.is_none() && !matches!(call, Call::Status) {
            // The first map is under way.
            return Attempt::NoLeader;
        }
        match call {
            Call::Map { .. } => Attempt::Answered(Answer::Map(self.state().map.clone())),
            Call::Status => Attempt::Answered(Answer::Status(self.status(None).await)),
            Call::Change { expected, change } => {
                let state = self.state();
                let Some(map) = state.map.as_ref() else {
                    return refused(Refusal::NoMap);
                };
                if map.epoch != *expected {
                    return refused(Refusal::Stale { current: map.epoch });
                }
                let well = change.check_proposer(ENTRY_VERSION, map);
                if let Err(error) = well.and_then(|()| self.may_raise(map, change)) {
                    return refused(error.into());
                }
                self.propose(Command::Change {
                    expected: *expected,
                    change: change.clone().resolve(map),
                })
                .await
            }
            Call::MakeToken { hash, life_ms } => {
                self.propose(Command::MakeToken {
                    hash: *hash,
                    now_ms: self.host.wall_ms(),
                    life_ms: *life_ms,
                })
                .await
            }
            Call::Join {
                token,
                node,
                devices,
                entries,
            } => {
                let entries = entries.unwrap_or(ENTRY_VERSION_LEAST);
                self.join(token, (node, entries), devices, deadline).await
            }
            _ => Attempt::Answered(bad("not a call for the leader")),
        }
    }

    /// Whoever asks for it, no newer entries are allowed while a node may be there that does not read them.
    fn may_raise(&self, map: &ClusterMap, change: &MapChange) -> Result<(), ChangeError> {
        let MapChange::RaiseEntries { to } = change else {
            return Ok(());
        };
        let watchman = self.watchman.lock().unwrap_or_else(PoisonError::into_inner);
        let unread = match watchman.as_ref() {
            Some(watchman) => watchman.reads_less(self.now(), map, *to),
            // It has just come to office, and heard nobody.
            None => Some(ENTRY_VERSION_LEAST),
        };
        match unread {
            Some(reads) => Err(ChangeError::Unread { to: *to, reads }),
            None => Ok(()),
        }
    }

    async fn join(
        &self,
        token: &crate::token::Token,
        (node, reads): (&ashlar_cluster_map::Node, u16),
        devices: &[ashlar_cluster_map::Device],
        deadline: tokio::time::Instant,
    ) -> Attempt {
        loop {
            let state = self.state();
            let Some(map) = state.map.as_ref() else {
                return refused(Refusal::NoMap);
            };
            if reads < map.entries {
                let (node, entries) = (node.id, map.entries);
                let older = ChangeError::OlderNode {
                    node,
                    reads,
                    entries,
                };
                return refused(older.into());
            }
            let change = MapChange::AddNode {
                node: node.clone(),
                devices: devices.to_vec(),
                groups: Vec::new(),
            };
            let attempt = self
                .propose(Command::Join {
                    expected: map.epoch,
                    hash: token.hash(),
                    now_ms: self.host.wall_ms(),
                    change: change.resolve(map),
                })
                .await;
            // A join is for whatever the map is: if it changed meanwhile, it is resolved again.
            match &attempt {
                Attempt::Answered(Answer::Failed(error))
                    if error.stale().is_some() && tokio::time::Instant::now() < deadline => {}
                _ => return attempt,
            }
        }
    }

    /// Has the members agree on a command.
    pub(crate) async fn propose_found(&self, map: ClusterMap) -> bool {
        let map = Box::new(map);
        let attempt = self.propose(Command::Found { map }).await;
        matches!(attempt, Attempt::Answered(Answer::Done(_)))
    }

    async fn propose(&self, command: Command) -> Attempt {
        if let Err(refusal) = self.state().check(&command) {
            return refused(refusal);
        }
        let agreed = self.raft.0.client_write(command);
        match tokio::time::timeout(self.timing.agreement, agreed).await {
            Ok(Ok(done)) => Attempt::Answered(outcome(done.data)),
            // Said before anything is proposed, or of an entry that another leader has overwritten here. With three
            // members it stands nowhere else then: who had it would not have voted for that one. With more it may, and
            // be agreed on yet.
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))))
                if self.members.len() <= 3 =>
            {
                Attempt::NoLeader
            }
            Ok(Err(error @ RaftError::APIError(ClientWriteError::ChangeMembershipError(_)))) => {
                Attempt::Answered(broken(error))
            }
            // It has taken too long, or this member has failed meanwhile: the others may agree on it all the same.
            Ok(Err(_)) | Err(_) => {
                let (away, members) = self.away().await;
                Attempt::Answered(Answer::Failed(ControlError::Uncertain { away, members }))
            }
        }
    }

    fn hear(
        &self,
        node: NodeId,
        chains: &[ChainReport],
        serving: Option<&[DeviceNo]>,
        entries: Option<u16>,
    ) -> Attempt {
        if chains.len() > REPORTS_MAX || serving.is_some_and(|it| it.len() > REPORTS_MAX) {
            return Attempt::Answered(bad("a heartbeat with too many chains or devices"));
        }
        let state = self.state();
        let Some(map) = state.map.as_ref() else {
            return Attempt::Answered(Answer::Failed(ControlError::NotFounded));
        };
        if map.node(node).is_none() {
            let unknown = ChangeError::UnknownNode(node);
            return refused(Refusal::Change(unknown));
        }
        let now = self.now();
        let mut watchman = self.watchman.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watchman) = watchman.as_mut() else {
            return Attempt::NoLeader;
        };
        watchman.hear(now, map, node, chains.to_vec(), serving);
        watchman.reads(node, entries);
        Attempt::Answered(Answer::Heard {
            epoch: map.epoch,
            leader: self.members.get(&self.id).cloned().unwrap_or_default(),
            held: watchman.held().map(str::to_owned),
        })
    }

    // What the leader does of itself.

    /// Follows whether this member leads, and does the leader's duties: the first map, spares for the lost, which
    /// devices are out, and which entries of the journal may be written.
    pub(crate) async fn duties(self: Arc<Member>, first: ClusterMap) {
        let pause = (self.timing.patience.away_after / 4)
            .clamp(Duration::from_millis(20), Duration::from_millis(500));
        let mut metrics = self.raft.0.metrics();
        let mut reign = None;
        loop {
            let leads = {
                let now = metrics.borrow_and_update();
                (now.current_leader == Some(self.me())).then_some(now.current_term)
            };
            if leads != reign {
                reign = leads;
                let watchman = leads.map(|_| Watchman::new(self.timing.patience, self.now()));
                *self.watchman.lock().unwrap_or_else(PoisonError::into_inner) = watchman;
            }
            if reign.is_some() {
                self.rule(&first).await;
            }
            if let Ok(Err(_)) = tokio::time::timeout(pause, metrics.changed()).await {
                return;
            }
        }
    }

    async fn rule(&self, first: &ClusterMap) {
        let state = self.state();
        let Some(map) = state.map.as_ref() else {
            // Refused by nobody: either it is agreed on, or this is tried again.
            self.propose_found(first.clone()).await;
            return;
        };
        let change = {
            let mut watchman = self.watchman.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(watchman) = watchman.as_mut() else {
                return;
            };
            watchman.forget(map);
            watchman.decide(self.now(), map)
        };
        if let Some(change) = change {
            let expected = map.epoch;
            // Whatever comes of it, the next round sees the map as it is then.
            self.lead(
                &Call::Change { expected, change },
                tokio::time::Instant::now() + self.timing.agreement,
            )
            .await;
        }
    }

    /// The members as openraft wants them.
    pub(crate) fn raft_members(&self) -> BTreeMap<MemberId, BasicNode> {
        let members = self.members.iter();
        members
            .map(|(id, address)| (MemberId::from(*id), BasicNode::new(address)))
            .collect()
    }
}

fn outcome(applied: Option<Outcome>) -> Answer {
    match applied {
        Some(Ok(epoch)) => Answer::Done(epoch),
        Some(Err(refusal)) => Answer::Failed(refusal.into()),
        None => bad("an entry that says nothing"),
    }
}

fn refused(refusal: Refusal) -> Attempt {
    Attempt::Answered(Answer::Failed(refusal.into()))
}

fn bad(what: &str) -> Answer {
    Answer::Failed(ControlError::BadRequest(what.to_owned()))
}

fn broken(error: impl std::fmt::Display) -> Answer {
    Answer::Failed(ControlError::Broken(error.to_string()))
}

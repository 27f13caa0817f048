//! A control member looks around: who of the others is there, and how the cluster is.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use tokio::task::JoinSet;

use crate::error::ControlError;
use crate::host::millis;
use crate::link::Link;
use crate::member::Member;
use crate::wire::{Answer, Call, Hello, MemberStatus, NodeStatus, Promise, Status, Who};

/// What another member says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Whether it has nothing stored.
    pub(crate) blank: bool,
    /// The index of the last entry of its log.
    pub(crate) last: Option<u64>,
    /// Whom it follows; none if it does not say.
    pub(crate) promise: Option<Promise>,
}

impl Member {
    pub(crate) fn hello(&self, to: u32) -> Hello {
        Hello {
            cluster: self.cluster,
            who: Who::Member(self.id),
            to: Some(to),
        }
    }

    /// Asks every other member whether it is there, all at once.
    pub(crate) async fn look_around(&self) -> BTreeMap<u32, Option<Seen>> {
        let mut asking = JoinSet::new();
        for (id, address) in self.members.iter().filter(|(id, _)| **id != self.id) {
            let (id, address) = (*id, address.clone());
            let (hello, time) = (self.hello(id), self.timing.probe);
            let host = self.host.clone();
            asking.spawn(async move {
                let asked = async {
                    let link = Link::open(&*host, &address, hello, time).await?;
                    link.call(&Call::Ping, time).await
                };
                match asked.await {
                    Ok((
                        _,
                        Answer::Pong {
                            blank,
                            last,
                            promise,
                        },
                    )) => {
                        let seen = Seen {
                            blank,
                            last,
                            promise,
                        };
                        (id, Some(seen))
                    }
                    _ => (id, None),
                }
            });
        }
        asking.join_all().await.into_iter().collect()
    }

    /// How many members do not answer, or do not count though there is something to lose; and of how many.
    pub(crate) async fn away(&self) -> (usize, usize) {
        let seen = self.look_around().await;
        let founded = self.state().map.is_some();
        let there = |it: Seen| !founded || it.promise.is_none_or(|promise| promise.counts);
        let away = seen.values().filter(|answer| !answer.is_some_and(there));
        (away.count(), self.members.len())
    }

    pub(crate) async fn status(&self, doubt: Option<ControlError>) -> Status {
        let seen = self.look_around().await;
        let state = self.state();
        let metrics = self.raft.0.metrics().borrow().clone();
        let members = self.members.iter().map(|(id, address)| {
            let other = seen.get(id).copied().flatten();
            let (last, counts) = match *id == self.id {
                true => (Some(metrics.last_log_index), Some(self.counts())),
                false => {
                    let promise = other.and_then(|it| it.promise);
                    (other.map(|it| it.last), promise.map(|it| it.counts))
                }
            };
            MemberStatus {
                id: *id,
                address: address.clone(),
                there: last.is_some(),
                last: last.flatten(),
                counts,
            }
        });
        let mut status = Status {
            cluster: self.cluster,
            epoch: state.epoch(),
            leader: metrics.current_leader.and_then(|l| u32::try_from(l).ok()),
            members: members.collect(),
            nodes: Vec::new(),
            chains: Vec::new(),
            reports: Vec::new(),
            away: Vec::new(),
            out: state.map.iter().flat_map(|map| &map.out).copied().collect(),
            held: None,
            entries_held: None,
            tokens: state.tokens.waiting(self.host.wall_ms()),
            doubt,
        };
        if status.doubt.is_some() {
            // Who led last leads nobody now, or is not known to.
            status.leader = None;
            return status;
        }
        let watchman = self.watchman.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(map), Some(watchman)) = (state.map.as_ref(), watchman.as_ref()) {
            let now = self.now();
            status.nodes = map
                .nodes
                .iter()
                .map(|node| NodeStatus {
                    node: node.id,
                    there: watchman.is_there(now, node.id),
                    silent_ms: millis(watchman.silence(now, node.id)),
                    draining: map.draining.contains(&node.id),
                    entries: watchman.said_to_read(node.id),
                })
                .collect();
            status.chains = watchman.verdicts(now, map);
            status.reports = watchman.reports();
            status.away = watchman.away(now, map).into_iter().collect();
            status.held = watchman.held().map(str::to_owned);
            status.entries_held = watchman.entries_held(now, map);
        }
        status
    }
}

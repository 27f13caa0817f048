//! What callers and nodes do in a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, Domains, MapChange};
use ashlar_layout::ids::{DeviceNo, Epoch, NodeId, Term};
use rand::Rng;
use rand::rngs::StdRng;

use super::judge::{Heard, Judge};
use crate::client::{ClientError, ControlClient};
use crate::error::ControlError;
use crate::policy::ChainReport;
use crate::state::Refusal;
use crate::testing;
use crate::token::{Token, TokenError};

/// What all of them share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) judge: Judge,
    pub(crate) stop: AtomicBool,
    pub(crate) tokens: AtomicU64,
    /// The next node to join.
    pub(crate) nodes: AtomicU32,
    /// Nodes that say nothing, a bit each.
    pub(crate) silent: AtomicU64,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Nodes that may join in a run, at most.
const JOINS: u32 = 6;

/// One caller.
pub(crate) struct Caller {
    pub(crate) name: usize,
    pub(crate) client: Arc<ControlClient>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) chance: StdRng,
    /// The map as this caller last had it.
    pub(crate) map: ClusterMap,
    pub(crate) done: u32,
}

impl Caller {
    /// Goes on until all are told to stop.
    pub(crate) async fn work(mut self) {
        while !self.shared.stopped() {
            let pause = self.chance.gen_range(1..300);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            match self.chance.gen_range(0..20) {
                0..=8 => self.change().await,
                9..=11 => self.look().await,
                12 | 13 => self.look_anywhere().await,
                14 => self.watch().await,
                15 | 16 => self.status().await,
                17 => self.drain().await,
                _ => self.join().await,
            }
            self.shared.judge.count("operations");
        }
    }

    fn took(&mut self, map: ClusterMap) {
        let by = format!("caller {}", self.name);
        self.shared.judge.saw(&by, &map);
        if map.epoch > self.map.epoch {
            self.map = map;
        }
    }

    /// The newest map.
    async fn look(&mut self) {
        let floor = self.shared.judge.floor();
        if let Ok(map) = self.client.newest_map().await {
            let by = format!("caller {}", self.name);
            self.shared.judge.newest(&by, floor, map.epoch);
            self.took(map);
        }
    }

    async fn look_anywhere(&mut self) {
        if let Ok(map) = self.client.get_map().await {
            self.took(map);
        }
    }

    async fn watch(&mut self) {
        let after = self.map.epoch;
        let time = Duration::from_millis(self.chance.gen_range(1..3000));
        if let Ok(Some(map)) = self.client.watch(after, time).await {
            if map.epoch <= after {
                let (got, after) = (map.epoch.0, after.0);
                let what = format!("a watch after epoch {after} ended with {got}");
                self.shared.judge.object(what);
            }
            self.took(map);
        }
    }

    async fn status(&mut self) {
        let floor = self.shared.judge.floor();
        if let Ok(status) = self.client.status().await {
            if status.doubt.is_none() {
                let by = format!("caller {}'s status", self.name);
                self.shared.judge.newest(&by, floor, status.epoch);
            } else {
                self.shared.judge.count("statuses in doubt");
            }
        }
    }

    /// A change that can be told from all others.
    async fn change(&mut self) {
        if self.chance.gen_ratio(4, 5) {
            self.look().await;
        }
        self.done += 1;
        let label = format!("c{}-{}", self.name, self.done);
        let at = self.chance.gen_range(0..self.map.nodes.len());
        let node = &self.map.nodes[at];
        let domains = Domains {
            rack: label.clone(),
            ..node.domains.clone()
        };
        let change = MapChange::SetDomains {
            node: node.id,
            domains,
        };
        let expected = self.map.epoch;
        let judge = &self.shared.judge;
        judge.change(&label, expected, Heard::Open);
        let answer = self.client.change(expected, change).await;
        let heard = Heard::of(&answer);
        judge.change(&label, expected, heard.clone());
        judge.count(match (&answer, heard) {
            (_, Heard::Done(_)) => "changes made",
            (_, Heard::Open) => "changes of which nobody knows",
            (Err(ClientError::Control(ControlError::NoQuorum { .. })), _) => {
                "changes without a quorum"
            }
            (_, Heard::No(_)) => "changes refused",
        });
    }

    /// A change like those that callers make.
    async fn drain(&mut self) {
        self.look().await;
        let at = self.chance.gen_range(0..self.map.nodes.len());
        let change = crate::rig::turn(&self.map, self.map.nodes[at].id.0);
        // Whatever comes of it: the epochs tell.
        let _ = self.client.change(self.map.epoch, change).await;
    }

    /// A token, and one or two nodes that want to join with it.
    async fn join(&mut self) {
        let number = self.shared.tokens.fetch_add(1, Ordering::Relaxed);
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&number.to_le_bytes());
        let token = Token::new(self.map.cluster, secret);
        let life = Duration::from_millis(self.chance.gen_range(50..60_000));
        if self.client.enter_token(&token, life).await.is_err() {
            return;
        }
        let rivals = self.chance.gen_range(1..=2);
        let joins = (0..rivals).map(|_| self.join_as(token.clone(), number));
        let mut joins: Vec<_> = joins.map(Box::pin).collect();
        match joins.as_mut_slice() {
            [one] => one.as_mut().await,
            [one, other] => {
                tokio::join!(one.as_mut(), other.as_mut());
            }
            _ => unreachable!("one or two"),
        }
    }

    async fn join_as(&self, token: Token, number: u64) {
        let node = self.shared.nodes.fetch_add(1, Ordering::Relaxed);
        if node >= 7 + JOINS {
            return;
        }
        let judge = &self.shared.judge;
        let (node, devices) = testing::node(node, 3);
        let id = node.id;
        judge.join(id, number, Heard::Open);
        let answer = self.client.join(token, node, devices).await;
        let heard = Heard::of(&answer);
        if let Err(ClientError::Control(ControlError::Refused(Refusal::Token(unknown)))) = &answer
            && *unknown == TokenError::Unknown
        {
            judge.object(format!("token {number} was made, and is unknown"));
        }
        judge.join(id, number, heard.clone());
        if matches!(heard, Heard::Done(_)) {
            judge.count("nodes that joined");
            let client = self.client.clone();
            tokio::spawn(beat(id, client, self.shared.clone()));
        }
    }
}

/// A node's heartbeats, until all are told to stop. Its chains are always as far as the map.
pub(crate) async fn beat(node: NodeId, client: Arc<ControlClient>, shared: Arc<Shared>) {
    let mut map: Option<ClusterMap> = None;
    while !shared.stopped() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if shared.silent.load(Ordering::Relaxed) >> node.0 & 1 == 1 {
            continue;
        }
        let mine: Vec<DeviceNo> = map.iter().flat_map(|map| own(map, node)).collect();
        let reports = map.iter().flat_map(|map| {
            let mine = &mine;
            let chains = map.partitions.iter().filter(move |partition| {
                let members = &partition.chain.devices;
                members.iter().any(|no| mine.contains(no))
            });
            chains.map(|partition| ChainReport {
                partition: partition.id,
                term: Term(1),
                config: 2 * map.epoch.0 + 1,
                members: partition.chain.devices.clone(),
                load: None,
            })
        });
        let heard = client.heartbeat(node, reports.collect(), Some(mine.clone()));
        let Ok(heard) = heard.await else { continue };
        shared.judge.count("heartbeats heard");
        let known = map.as_ref().map_or(Epoch(0), |map| map.epoch);
        if heard.epoch > known
            && let Ok(newer) = client.get_map().await
        {
            map = Some(newer);
        }
    }
}

fn own(map: &ClusterMap, node: NodeId) -> impl Iterator<Item = DeviceNo> {
    let devices = map.devices.iter().filter(move |it| it.node == node);
    devices.map(|it| it.no)
}

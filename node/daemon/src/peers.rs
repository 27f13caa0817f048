//! Connections to the other nodes of our chains.
//!
//! Invariants:
//! - one connection out to each peer; what we say goes there, what they say comes in on theirs;
//! - a replica hears `PeerUp` when the peer has answered our hello, and `PeerDown` once for each `PeerUp`;
//! - a message for a peer that is not up is dropped: the replica sends what matters again.

use std::net::SocketAddr;
use std::time::Duration;

use ashlar_cluster_journal as journal;
use ashlar_layout::ids::{DeviceNo, NodeId};
use ashlar_layout::message::{ChainMessage, Reply, Request};
use ashlar_layout::time::Instant;
use ashlar_node_reactor::{ConnId, Driver};
use bytes::Bytes;

use crate::core::{Conn, Core, Todo};
use crate::outgoing;
use crate::replicas::ReplicaSlot;
use crate::words::say;

/// First and longest wait before a lost peer is called again.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(100);
/// How long a call may take to reach a peer's kernel, which answers though the peer itself be slow,
const CONNECT_MAX: Duration = Duration::from_millis(250);
/// and how long the peer may take to answer it.
const HELLO_MAX: Duration = Duration::from_secs(2);
/// Bytes that may wait for a peer before its connection is given up: it reads too slowly, or not at
/// all, and catches up from the log later.
const QUEUE_MAX: usize = 32 * 1024 * 1024;

enum State {
    Down { retry_at: Instant },
    Calling { conn: ConnId, until: Instant },
    Up { conn: ConnId },
}

/// Another node's core that holds replicas of our partitions.
pub struct Peer {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    /// Whether a chain of the present map needs it.
    pub(crate) wanted: bool,
    state: State,
    retry: Duration,
}

impl Peer {
    /// A peer to be called at once.
    pub(crate) fn new(node: NodeId, address: SocketAddr) -> Peer {
        Peer {
            node,
            address,
            wanted: true,
            state: State::Down {
                retry_at: Instant(0),
            },
            retry: RETRY_MIN,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Down { .. } if !self.wanted => None,
            State::Down { retry_at } => Some(retry_at),
            State::Calling { until, .. } => Some(until),
            State::Up { .. } => None,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    fn lost(&mut self, now: Instant) {
        self.state = State::Down {
            retry_at: now + self.retry,
        };
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }
}

impl Core {
    /// Calls peers whose time has come, and gives up on calls that take too long.
    pub(crate) fn tend_peers(&mut self, now: Instant, io: &mut impl Driver) {
        if self.draining() {
            return;
        }
        for index in 0..self.peers.len() {
            match self.peers[index].state {
                State::Down { retry_at } if now >= retry_at && self.peers[index].wanted => {
                    match io.connect(self.peers[index].address) {
                        Ok(conn) => {
                            self.conns.insert(conn, Conn::new(Some(index)));
                            let until = now + CONNECT_MAX;
                            self.peers[index].state = State::Calling { conn, until };
                        }
                        Err(_) => self.peers[index].lost(now),
                    }
                }
                State::Calling { conn, until } if now >= until => {
                    io.abort(conn);
                    self.conns.remove(&conn);
                    self.peers[index].lost(now);
                }
                _ => {}
            }
        }
    }

    /// A call to a peer was answered: say who we are.
    pub(crate) fn peer_connected(&mut self, conn: ConnId, now: Instant, io: &mut impl Driver) {
        if let Some(index) = self.conns.get(&conn).and_then(|c| c.peer_out)
            && let State::Calling { until, .. } = &mut self.peers[index].state
        {
            *until = now + HELLO_MAX;
        }
        let map = &self.maps.map;
        let hello = Request::Hello {
            cluster: map.cluster,
            node: self.shared.node,
            core: self.core,
        };
        outgoing::request(io, conn, map.epoch, 1, &hello);
    }

    /// A reply came on a connection of ours; it can only be the one to our hello.
    pub(crate) fn peer_reply(
        &mut self,
        conn: ConnId,
        reply: &Reply,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let Some(index) = self.conns.get(&conn).and_then(|c| c.peer_out) else {
            return;
        };
        match reply {
            Reply::Hello { node, .. } if *node == self.peers[index].node => {
                let peer = &mut self.peers[index];
                peer.state = State::Up { conn };
                peer.retry = RETRY_MIN;
                self.tell_replicas(index, true);
            }
            other => {
                let peer = &self.peers[index];
                say!(
                    "node {} at {} is not the peer we look for: {other:?}",
                    peer.node,
                    peer.address
                );
                io.abort(conn);
                self.conns.remove(&conn);
                self.peers[index].lost(now);
            }
        }
    }

    /// The connection to a peer is gone.
    pub(crate) fn peer_lost(&mut self, index: usize, conn: ConnId, now: Instant) {
        let was_up = match self.peers[index].state {
            State::Up { conn: ours } if ours == conn => true,
            State::Calling { conn: ours, .. } if ours == conn => false,
            _ => return,
        };
        self.peers[index].lost(now);
        if was_up {
            self.tell_replicas(index, false);
        }
    }

    fn tell_replicas(&mut self, peer: usize, up: bool) {
        for replica in 0..self.replicas.len() {
            for peer in self.replicas[replica].devices_of(peer) {
                let event = if up {
                    journal::Event::PeerUp { peer }
                } else {
                    journal::Event::PeerDown { peer }
                };
                self.todo.push_back(Todo::Replica { replica, event });
            }
        }
    }

    /// Sends a replica's message to another of its chain.
    pub(crate) fn send_chain(
        &mut self,
        replica: usize,
        to: DeviceNo,
        message: &ChainMessage,
        entries: Bytes,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let Some(peer) = self.replicas[replica].peer_of(to) else {
            // One that does not know what it promised asks members that it was told of, and that neither the map nor
            // its own log names: it hears when they can be reached, and asks them then.
            return self.know(replica, to);
        };
        let State::Up { conn } = self.peers[peer].state else {
            return;
        };
        if io.queued(conn) > QUEUE_MAX {
            say!(
                "node {} does not read what we send: its connection is given up",
                self.peers[peer].node
            );
            io.abort(conn);
            self.conns.remove(&conn);
            self.peer_lost(peer, conn, now);
            return;
        }
        outgoing::chain(io, conn, self.maps.map.epoch, message, entries);
    }

    /// A message of a chain came in. It counts only if its sender is who it says it is. The epochs of
    /// the two maps do not matter here: who is in a chain, and whose word counts, is in its log.
    pub(crate) fn chain_message(&mut self, conn: ConnId, message: ChainMessage, payload: Bytes) {
        let Some(replica) = self
            .genuine(conn, &message)
            .or_else(|| self.call(conn, &message))
        else {
            return;
        };
        // A member that neither the map nor our own log names any more, or not yet: it is answered.
        self.know(replica, message.from);
        let event = journal::Event::Message { message, payload };
        self.todo.push_back(Todo::Replica { replica, event });
    }

    /// The replica that a chain message is for, if it comes from whom it says. Asked before a byte of
    /// its payload is taken in.
    pub(crate) fn genuine(&self, conn: ConnId, message: &ChainMessage) -> Option<usize> {
        let meant =
            |slot: &ReplicaSlot| slot.partition == message.partition && slot.me == message.to;
        let replica = self.replicas.iter().position(meant)?;
        self.is_genuine(conn, message).then_some(replica)
    }

    /// Whether it comes from the node that it names.
    fn is_genuine(&self, conn: ConnId, message: &ChainMessage) -> bool {
        let hello = self.conns.get(&conn).and_then(|c| c.hello);
        let from = self.maps.map.device(message.from);
        from.zip(hello)
            .is_some_and(|(from, (sender, _))| from.node == sender)
    }

    /// The device of ours that a chain message is for, if the map knows the partition and there is no replica of it.
    pub(crate) fn called(&self, conn: ConnId, message: &ChainMessage) -> Option<usize> {
        let device = self.devices.iter().position(|it| it.no == message.to)?;
        self.maps.map.known_partition(message.partition)?;
        let unknown = self.slot_of(message.partition, device).is_none();
        (unknown && self.is_genuine(conn, message)).then_some(device)
    }

    /// Somebody takes a device of ours for a member that never came to be one here, and the map does not name: its
    /// chain was changed while its partition was made. Others may need an answer, if it is that there is nothing.
    fn call(&mut self, conn: ConnId, message: &ChainMessage) -> Option<usize> {
        let device = self.called(conn, message)?;
        let maps = self.maps.clone();
        let known = maps.map.known_partition(message.partition)?;
        self.replicas
            .push(ReplicaSlot::of(known, message.to, device));
        let replica = self.replicas.len() - 1;
        self.make_replica(replica);
        self.follow_map();
        Some(replica)
    }
}

//! Connections to the other nodes of our chains.
//!
//! Invariants:
//! - one connection out to each peer; what we say goes there, what they say comes in on theirs;
//! - a replica hears `PeerUp` when the peer has answered our hello, and `PeerDown` once for each `PeerUp`;
//! - a message for a peer that is not up is dropped: the replica sends what matters again.

use std::net::SocketAddr;
use std::time::Duration;

use ashlar_cluster_journal as journal;
use ashlar_layout::frame::FrameHeader;
use ashlar_layout::ids::NodeId;
use ashlar_layout::message::{ChainMessage, Reply, Request};
use ashlar_layout::time::Instant;
use ashlar_node_reactor::{ConnId, Io};
use bytes::Bytes;

use crate::core::{Conn, Core, Todo, replica_of};
use crate::outgoing;

/// First and longest wait before a lost peer is called again.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// How long a peer may take to answer a call.
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
    state: State,
    retry: Duration,
}

impl Peer {
    /// A peer to be called at once.
    pub(crate) fn new(node: NodeId, address: SocketAddr) -> Peer {
        Peer {
            node,
            address,
            state: State::Down {
                retry_at: Instant(0),
            },
            retry: RETRY_MIN,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self.state {
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
    pub(crate) fn tend_peers(&mut self, now: Instant, io: &mut Io) {
        if self.draining() {
            return;
        }
        for index in 0..self.peers.len() {
            match self.peers[index].state {
                State::Down { retry_at } if now >= retry_at => {
                    match io.connect(self.peers[index].address) {
                        Ok(conn) => {
                            self.conns.insert(conn, Conn::new(Some(index)));
                            let until = now + HELLO_MAX;
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
    pub(crate) fn peer_connected(&mut self, conn: ConnId, io: &mut Io) {
        let map = &self.shared.map;
        let hello = Request::Hello {
            cluster: map.cluster,
            node: self.shared.node,
        };
        outgoing::request(io, conn, map.epoch, 1, &hello);
    }

    /// A reply came on a connection of ours; it can only be the one to our hello.
    pub(crate) fn peer_reply(&mut self, conn: ConnId, reply: &Reply, now: Instant, io: &mut Io) {
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
                eprintln!(
                    "node {} at {} is not the peer we look for: {other:?}",
                    peer.node, peer.address
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
            if let Some(place) = self.replicas[replica].place_of(peer) {
                let event = if up {
                    journal::Event::PeerUp { peer: place }
                } else {
                    journal::Event::PeerDown { peer: place }
                };
                self.todo.push_back(Todo::Replica { replica, event });
            }
        }
    }

    /// Sends a replica's message to another of its chain.
    pub(crate) fn send_chain(
        &mut self,
        replica: usize,
        to: u8,
        message: &ChainMessage,
        entries: Bytes,
        now: Instant,
        io: &mut Io,
    ) {
        let Some(peer) = self.replicas[replica].peer_at(to) else {
            return;
        };
        let State::Up { conn } = self.peers[peer].state else {
            return;
        };
        if io.queued(conn) > QUEUE_MAX {
            eprintln!(
                "node {} does not read what we send: its connection is given up",
                self.peers[peer].node
            );
            io.abort(conn);
            self.conns.remove(&conn);
            self.peer_lost(peer, conn, now);
            return;
        }
        outgoing::chain(io, conn, self.shared.map.epoch, message, entries);
    }

    /// A message of a chain came in. It counts only if its sender is who it says it is, and
    /// works with the same map.
    pub(crate) fn chain_message(
        &mut self,
        conn: ConnId,
        header: &FrameHeader,
        message: ChainMessage,
        payload: Bytes,
    ) {
        let replica = self.genuine(conn, header, &message);
        let Some(replica) = replica else {
            return;
        };
        let event = journal::Event::Message { message, payload };
        self.todo.push_back(Todo::Replica { replica, event });
    }

    /// The replica that a chain message is for, if it comes from whom it says. Asked before a byte of
    /// its payload is taken in.
    pub(crate) fn genuine(
        &self,
        conn: ConnId,
        header: &FrameHeader,
        message: &ChainMessage,
    ) -> Option<usize> {
        let sender = self.conns.get(&conn).and_then(|c| c.hello);
        replica_of(&self.replicas, message.partition).filter(|r| {
            let slot = &self.replicas[*r];
            let node = slot.peer_at(message.from).map(|p| self.peers[p].node);
            node.is_some() && node == sender && header.epoch == self.shared.map.epoch
        })
    }
}

//! Connections between replicas, as the drivers promise them: in order or not at all; what was under
//! way is gone once a break was told; nothing of an earlier process is delivered for a later one.
//!
//! Invariants:
//! - the queue from `a` to `b` is what `b` will learn of `a`, in order: messages, and the ends and
//!   beginnings of connections;
//! - what `a` sends on a connection whose end it has not been told of yet is lost.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use ashlar_layout::control;
use ashlar_layout::message::ChainMessage;
use bytes::Bytes;

use crate::hash;

/// A message, and a hash of it.
#[derive(Debug)]
pub struct Letter {
    /// What it says.
    pub message: ChainMessage,
    /// The frame's payload.
    pub payload: Bytes,
    hash: u64,
}

impl Letter {
    /// Seals it.
    pub fn new(message: ChainMessage, payload: Bytes) -> Self {
        let hash = hash::of(&(control::encode(&message), &payload));
        Self {
            message,
            payload,
            hash,
        }
    }

    /// Of all that it says.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// What a replica will learn next of another.
#[derive(Clone, Debug)]
pub enum Item {
    /// The connection works.
    Up,
    /// It broke.
    Down,
    /// Something was said.
    Letter(Arc<Letter>),
}

impl Item {
    fn is_letter(&self) -> bool {
        matches!(self, Item::Letter(_))
    }
}

impl Hash for Item {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(match self {
            Item::Up => 1,
            Item::Down => 2,
            Item::Letter(letter) => letter.hash,
        });
    }
}

/// All queues, by sender and receiver.
#[derive(Clone, Debug)]
pub struct Net {
    nodes: usize,
    /// By queue (they are numbered by sender, then receiver), each in order.
    items: Vec<(u8, Item)>,
    cut: Vec<(u8, u8)>,
}

impl Hash for Net {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (queue, item) in &self.items {
            state.write_u8(*queue);
            item.hash(state);
        }
        self.cut.hash(state);
    }
}

impl Net {
    /// Nobody is connected.
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            items: Vec::new(),
            cut: Vec::new(),
        }
    }

    fn number(&self, from: usize, to: usize) -> u8 {
        (from * self.nodes + to) as u8
    }

    /// What `to` will learn of `from`.
    pub fn queue(&self, from: usize, to: usize) -> impl Iterator<Item = &Item> {
        let number = self.number(from, to);
        let behind = self.items.iter().skip_while(move |(n, _)| *n < number);
        behind
            .take_while(move |(n, _)| *n == number)
            .map(|(_, item)| item)
    }

    /// Whether there is something that `to` will learn of `from`.
    pub fn waits(&self, from: usize, to: usize) -> bool {
        self.queue(from, to).next().is_some()
    }

    /// Whether there is something that `to` will learn of anyone.
    pub fn waits_for(&self, to: usize) -> bool {
        let nodes = self.nodes;
        self.items
            .iter()
            .any(|(queue, _)| usize::from(*queue) % nodes == to)
    }

    fn push(&mut self, from: usize, to: usize, item: Item) {
        let number = self.number(from, to);
        let at = self.items.partition_point(|(queue, _)| *queue <= number);
        self.items.insert(at, (number, item));
    }

    fn clear(&mut self, from: usize, to: usize) {
        let number = self.number(from, to);
        self.items.retain(|(queue, _)| *queue != number);
    }

    /// `from`, which believes to be connected, says something.
    pub fn send(&mut self, from: usize, to: usize, letter: Arc<Letter>) {
        let lost = self.queue(to, from).any(|item| !item.is_letter());
        if !lost {
            self.push(from, to, Item::Letter(letter));
        }
    }

    /// The next thing.
    pub fn pop(&mut self, from: usize, to: usize) -> Option<Item> {
        let number = self.number(from, to);
        let at = self.items.partition_point(|(queue, _)| *queue < number);
        (self.items.get(at)?.0 == number).then(|| self.items.remove(at).1)
    }

    /// The connection breaks and is made again: what is under way is lost.
    pub fn broken(&mut self, a: usize, b: usize) {
        let (a8, b8) = (a as u8, b as u8);
        self.cut.retain(|cut| *cut != (a8, b8) && *cut != (b8, a8));
        for (from, to) in [(a, b), (b, a)] {
            self.clear(from, to);
            self.push(from, to, Item::Down);
            self.push(from, to, Item::Up);
        }
    }

    /// The connection breaks and is not made again, for now.
    pub fn cut(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            self.clear(from, to);
            self.push(from, to, Item::Down);
        }
        self.cut.push((a as u8, b as u8));
    }

    /// Connections that are cut.
    pub fn cuts(&self) -> usize {
        self.cut.len()
    }

    /// A connection that was cut is made again, if both processes run.
    pub fn mend(&mut self, nth: usize, running: &[usize]) {
        let (a, b) = self.cut.remove(nth);
        let (a, b) = (usize::from(a), usize::from(b));
        if running.contains(&a) && running.contains(&b) {
            self.push(a, b, Item::Up);
            self.push(b, a, Item::Up);
        }
    }

    /// Whether that connection is cut.
    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        let (a, b) = (a as u8, b as u8);
        self.cut.contains(&(a, b)) || self.cut.contains(&(b, a))
    }

    /// A process ended: what it said may still arrive, unless `lost`; nothing reaches it any more.
    pub fn ended(&mut self, node: usize, lost: bool) {
        for other in (0..self.nodes).filter(|other| *other != node) {
            self.clear(other, node);
            if lost {
                self.clear(node, other);
            }
            self.push(node, other, Item::Down);
        }
    }

    /// A process began: it is connected with those that run, and told that the others cannot be reached.
    pub fn began(&mut self, node: usize, running: &[usize]) {
        for other in (0..self.nodes).filter(|other| *other != node) {
            if running.contains(&other) && !self.is_cut(node, other) {
                self.push(node, other, Item::Up);
                self.push(other, node, Item::Up);
            } else {
                self.push(other, node, Item::Down);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(net: &Net, from: usize, to: usize) -> String {
        let kind = |item: &Item| match item {
            Item::Up => 'u',
            Item::Down => 'd',
            Item::Letter(_) => 'l',
        };
        net.queue(from, to).map(kind).collect()
    }

    fn letter() -> Arc<Letter> {
        use ashlar_layout::ids::{DeviceNo, PartitionId, Term};
        let message = ChainMessage {
            partition: PartitionId(7),
            from: DeviceNo(1),
            to: DeviceNo(2),
            term: Term(0),
            body: ashlar_layout::message::ChainBody::Seal,
        };
        Arc::new(Letter::new(message, Bytes::new()))
    }

    #[test]
    fn what_is_under_way_is_lost_with_its_connection() {
        let mut net = Net::new(3);
        net.began(1, &[0, 1]);
        assert_eq!(
            (kinds(&net, 0, 1), kinds(&net, 1, 0)),
            ("u".into(), "u".into())
        );
        assert_eq!(kinds(&net, 2, 1), "d");
        net.send(0, 1, letter());
        assert_eq!(
            kinds(&net, 0, 1),
            "u",
            "it has not heard of the connection yet"
        );
        assert!(net.pop(1, 0).is_some() && net.pop(1, 0).is_none());
        net.send(0, 1, letter());
        net.send(0, 2, letter());
        assert_eq!(
            (kinds(&net, 0, 1), kinds(&net, 0, 2)),
            ("ul".into(), "l".into())
        );
        net.broken(0, 1);
        assert_eq!(
            (kinds(&net, 0, 1), kinds(&net, 1, 0)),
            ("du".into(), "du".into())
        );
        net.cut(0, 1);
        net.mend(0, &[0, 1, 2]);
        assert_eq!((kinds(&net, 0, 1), net.cuts()), ("du".into(), 0));
        net.ended(0, false);
        assert_eq!(
            (kinds(&net, 0, 2), kinds(&net, 1, 0)),
            ("ld".into(), String::new())
        );
        assert!(net.waits_for(1) && net.waits_for(2) && !net.waits_for(0));
    }
}

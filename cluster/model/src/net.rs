//! Connections between replicas, as the drivers promise them: in order or not at all; what was under
//! way is gone once a break was told; nothing of an earlier process is delivered for a later one.
//!
//! Invariants:
//! - the queue from `a` to `b` is what `b` will learn of `a`, in order: messages, and the ends and
//!   beginnings of connections;
//! - what `a` sends on a connection whose end it has not been told of yet is lost.

use std::collections::VecDeque;
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
}

impl PartialEq for Letter {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Hash for Letter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

/// What a replica will learn next of another.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Item {
    /// The connection works.
    Up,
    /// It broke.
    Down,
    /// Something was said.
    Letter(Arc<Letter>),
}

/// All queues, by sender and receiver.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Net {
    nodes: usize,
    queues: Vec<VecDeque<Item>>,
    cut: Vec<(usize, usize)>,
}

impl Net {
    /// Nobody is connected.
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            queues: vec![VecDeque::new(); nodes * nodes],
            cut: Vec::new(),
        }
    }

    fn index(&self, from: usize, to: usize) -> usize {
        from * self.nodes + to
    }

    /// What `to` will learn of `from`.
    pub fn queue(&self, from: usize, to: usize) -> &VecDeque<Item> {
        &self.queues[self.index(from, to)]
    }

    fn queue_mut(&mut self, from: usize, to: usize) -> &mut VecDeque<Item> {
        let index = self.index(from, to);
        &mut self.queues[index]
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// `from`, which believes to be connected, says something.
    pub fn send(&mut self, from: usize, to: usize, letter: Letter) {
        let lost = self
            .queue(to, from)
            .iter()
            .any(|item| !matches!(item, Item::Letter(_)));
        if !lost {
            self.queue_mut(from, to)
                .push_back(Item::Letter(Arc::new(letter)));
        }
    }

    /// The next thing.
    pub fn pop(&mut self, from: usize, to: usize) -> Option<Item> {
        self.queue_mut(from, to).pop_front()
    }

    /// The connection breaks and is made again: what is under way is lost.
    pub fn broken(&mut self, a: usize, b: usize) {
        self.cut.retain(|cut| *cut != (a, b) && *cut != (b, a));
        for (from, to) in [(a, b), (b, a)] {
            let queue = self.queue_mut(from, to);
            queue.clear();
            queue.extend([Item::Down, Item::Up]);
        }
    }

    /// The connection breaks and is not made again, for now.
    pub fn cut(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let queue = self.queue_mut(from, to);
            queue.clear();
            queue.push_back(Item::Down);
        }
        self.cut.push((a, b));
    }

    /// Connections that are cut.
    pub fn cuts(&self) -> &[(usize, usize)] {
        &self.cut
    }

    /// A connection that was cut is made again, if both processes run.
    pub fn mend(&mut self, nth: usize, running: &[usize]) {
        let (a, b) = self.cut.remove(nth);
        if running.contains(&a) && running.contains(&b) {
            self.queue_mut(a, b).push_back(Item::Up);
            self.queue_mut(b, a).push_back(Item::Up);
        }
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a, b)) || self.cut.contains(&(b, a))
    }

    /// A process ended: what it said may still arrive, unless `lost`; nothing reaches it any more.
    pub fn ended(&mut self, node: usize, lost: bool) {
        for other in (0..self.nodes).filter(|other| *other != node) {
            self.queue_mut(other, node).clear();
            let queue = self.queue_mut(node, other);
            if lost {
                queue.clear();
            }
            queue.push_back(Item::Down);
        }
    }

    /// A process began: it is connected with those that run, and told that the others cannot be reached.
    pub fn began(&mut self, node: usize, running: &[usize]) {
        for other in (0..self.nodes).filter(|other| *other != node) {
            if running.contains(&other) && !self.is_cut(node, other) {
                self.queue_mut(node, other).push_back(Item::Up);
                self.queue_mut(other, node).push_back(Item::Up);
            } else {
                self.queue_mut(other, node).push_back(Item::Down);
            }
        }
    }
}

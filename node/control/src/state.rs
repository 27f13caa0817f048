//! What the control members agree on, and how a log entry changes it. No I/O, no clock.
//!
//! Invariants:
//! - [`State::apply`] is a function of state and command: members that have applied the same log are in the same state;
//! - a refused command changes nothing;
//! - the epoch counts up by one with each change of the map, and a change names the epoch that it was made for;
//! - the state stays so small that it fits into one frame, as a snapshot.

use ashlar_cluster_map::{ChangeError, ClusterMap, Device, History, MapChange, Node};
use ashlar_layout::ids::Epoch;
use serde::{Deserialize, Serialize};

use crate::limits::STATE_MAX;
use crate::token::{TokenBook, TokenError, TokenHash};

/// What a log entry asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first map. Where there is one already, nothing.
    Found {
        /// The map.
        map: Box<ClusterMap>,
    },
    /// A change of the map, if it still is of this epoch.
    Change {
        /// The epoch that the change was made for.
        expected: Epoch,
        /// The change, resolved.
        change: MapChange,
    },
    /// A join token.
    MakeToken {
        /// Its hash.
        hash: TokenHash,
        /// The proposer's time, in milliseconds since 1970.
        now_ms: u64,
        /// How long it is to live, in milliseconds.
        life_ms: u64,
    },
    /// A node joins with a token.
    Join {
        /// The epoch that the join was resolved for.
        expected: Epoch,
        /// The token's hash.
        hash: TokenHash,
        /// The proposer's time, in milliseconds since 1970.
        now_ms: u64,
        /// An `AddNode`, resolved.
        change: MapChange,
    },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no map yet.
    #[error("there is no cluster map yet")]
    NoMap,
    /// The map has changed since.
    #[error("the map is of epoch {current}, not of the one that the change was made for")]
    Stale {
        /// What it is.
        current: Epoch,
    },
    /// The change itself.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The state would not fit into a frame any more.
    #[error("the map would take {bytes} bytes; {STATE_MAX} are the most")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
}

/// What comes of a command: the map's epoch after it.
pub type Outcome = Result<Epoch, Refusal>;

/// What is agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The map; none before it was founded.
    pub map: Option<ClusterMap>,
    /// What left it.
    pub history: History,
    /// Join tokens.
    pub tokens: TokenBook,
}

impl State {
    /// The map's epoch; 0 before there is one.
    pub fn epoch(&self) -> Epoch {
        self.map.as_ref().map_or(Epoch(0), |m| m.epoch)
    }

    /// Does what the command asks for, or changes nothing.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let next = self.after(command)?;
        if let Some(next) = next {
            *self = next;
        }
        Ok(self.epoch())
    }

    /// What would come of the command.
    pub fn check(&self, command: &Command) -> Outcome {
        Ok(self.after(command)?.as_ref().unwrap_or(self).epoch())
    }

    /// The state after the command; none if it changes nothing.
    fn after(&self, command: &Command) -> Result<Option<State>, Refusal> {
        let mut next = self.clone();
        match command {
            Command::Found { map } => {
                if self.map.is_some() {
                    return Ok(None);
                }
                map.validate().map_err(ChangeError::from)?;
                let heirs = map.partitions.iter().any(|p| !p.parents.is_empty());
                if heirs || !map.ending.is_empty() {
                    let what = "something that only a map of later can have: parts of partitions";
                    return Err(ChangeError::Fixed(what.to_owned()).into());
                }
                next.map = Some(ClusterMap::clone(map));
            }
            Command::Change { expected, change } => next.change(*expected, change)?,
            Command::MakeToken {
                hash,
                now_ms,
                life_ms,
            } => next.tokens.enter(*hash, *now_ms, *life_ms)?,
            Command::Join {
                expected,
                hash,
                now_ms,
                change,
            } => {
                let MapChange::AddNode { node, devices, .. } = change else {
                    let what = "something that a join cannot".to_owned();
                    return Err(ChangeError::Fixed(what).into());
                };
                match self.tokens.check(*hash, *now_ms) {
                    // Its reply was lost: the same node asks again.
                    Err(TokenError::Used { by }) if by == node.id && self.holds(node, devices) => {
                        return Ok(None);
                    }
                    other => other?,
                }
                next.change(*expected, change)?;
                next.tokens.spend(*hash, node.id);
            }
        }
        let bytes = serde_json::to_vec(&next).map_or(usize::MAX, |json| json.len());
        if bytes > STATE_MAX {
            return Err(Refusal::TooLarge { bytes });
        }
        Ok(Some(next))
    }

    fn change(&mut self, expected: Epoch, change: &MapChange) -> Result<(), Refusal> {
        let map = self.map.as_ref().ok_or(Refusal::NoMap)?;
        if map.epoch != expected {
            return Err(Refusal::Stale { current: map.epoch });
        }
        let next = change.apply(map, &self.history)?;
        self.history.note(map, &next);
        self.map = Some(next);
        Ok(())
    }

    /// Whether the map has the node and its devices just so.
    fn holds(&self, node: &Node, devices: &[Device]) -> bool {
        self.map.as_ref().is_some_and(|map| {
            map.node(node.id) == Some(node) && devices.iter().all(|d| map.device(d.no) == Some(d))
        })
    }
}

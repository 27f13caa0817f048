//! The types that openraft works with.

use openraft::BasicNode;
use serde::{Deserialize, Serialize};

use crate::state::{Command, Outcome, State};

/// What openraft runs on.
#[cfg(not(test))]
pub type Runtime = openraft::TokioRuntime;
/// The same, but for what can be ended like a process, and chance that comes from a seed.
#[cfg(test)]
pub type Runtime = crate::sim::runtime::Runtime;

/// A control member's number, as openraft has it.
pub type MemberId = u64;

/// What comes of applying an entry: nothing for one that is openraft's own.
pub type Applied = Option<Outcome>;

openraft::declare_raft_types!(
    /// The control plane's consensus: commands on a [`State`], which is its own snapshot.
    pub Types:
        D = Command,
        R = Applied,
        NodeId = MemberId,
        Node = BasicNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = State,
        AsyncRuntime = Runtime,
);

/// A log entry.
pub type Entry = openraft::Entry<Types>;
/// A log entry's name.
pub type LogId = openraft::LogId<MemberId>;
/// A vote.
pub type Vote = openraft::Vote<MemberId>;
/// Who the members are, and since which entry.
pub type Membership = openraft::StoredMembership<MemberId, BasicNode>;
/// What names a snapshot.
pub type SnapshotMeta = openraft::SnapshotMeta<MemberId, BasicNode>;
/// The consensus itself.
pub type Raft = openraft::Raft<Types>;

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Found { .. } => "the first map",
            Command::Change { .. } => "a change of the map",
            Command::MakeToken { .. } => "a join token",
            Command::Join { .. } => "a join",
        })
    }
}

/// The state with the entry that it is as of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The last entry applied.
    pub last: Option<LogId>,
    /// The members as of it.
    pub membership: Membership,
    /// The state.
    pub state: State,
}

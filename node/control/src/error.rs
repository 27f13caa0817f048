//! What can go wrong between a caller and the control plane.

use ashlar_layout::frame::FrameError;
use ashlar_layout::ids::{ClusterId, Epoch};
use serde::{Deserialize, Serialize};

use crate::state::Refusal;

/// What the control plane answers when it does not do what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ControlError {
    /// The caller belongs to another cluster.
    #[error("this is cluster {ours}; the caller belongs to cluster {theirs}")]
    OtherCluster {
        /// The control plane's.
        ours: ClusterId,
        /// The caller's.
        theirs: ClusterId,
    },
    /// The caller wanted another member, or says that it is one and is none.
    #[error("this is control member {ours}, and {theirs} was meant or said")]
    OtherMember {
        /// Who answers.
        ours: u32,
        /// Who was meant, or who the caller says it is.
        theirs: u32,
    },
    /// Only members may ask this.
    #[error("only control members may ask for this")]
    NotForYou,
    /// The first frame must say who the caller is.
    #[error("the first frame of a connection must be a hello")]
    NoHello,
    /// The frame was damaged, too large or of another protocol. The connection ends.
    #[error("{0}")]
    BadFrame(String),
    /// The frame arrived whole, but its content cannot be understood.
    #[error("the request cannot be understood: {0}")]
    BadRequest(String),
    /// There are too many connections.
    #[error("the control member has too many connections: try again later, or another one")]
    Busy,
    /// So many members cannot be reached that nothing can be agreed on. Nothing was changed.
    #[error(
        "no quorum: {away} of {members} control members are away; the last map stays in force, and nothing can be changed"
    )]
    NoQuorum {
        /// How many cannot be reached.
        away: usize,
        /// Of how many.
        members: usize,
    },
    /// The members were lost while the change was under way: it may be made yet, or not.
    #[error(
        "the change was proposed, and not agreed on in time ({away} of {members} control members are away): it may \
         still be made; look at the map before trying again"
    )]
    Uncertain {
        /// How many cannot be reached.
        away: usize,
        /// Of how many.
        members: usize,
    },
    /// No leader was found in time.
    #[error("the control members have no leader at the moment: try again")]
    Electing,
    /// Passed on to a member that is no leader either.
    #[error("this control member is not the leader")]
    NotLeader,
    /// Members that were never founded: all of them must be up at the same time.
    #[error(
        "the control plane has not been founded yet: all of its members must be up at the same time"
    )]
    NotFounded,
    /// This member lost what it had stored, and has not caught up yet.
    #[error(
        "this control member has lost its state, and is fed by the others once all of them are there"
    )]
    Recovering,
    /// The command was refused by the state machine.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The member itself has failed: its disk, most likely.
    #[error("the control member has failed: {0}")]
    Broken(String),
}

impl ControlError {
    /// Whether to ask again, perhaps another member, can help without anybody doing anything.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            ControlError::Busy
                | ControlError::Electing
                | ControlError::NotLeader
                | ControlError::NotFounded
                | ControlError::Recovering
                | ControlError::Broken(_)
        )
    }

    /// The epoch that a stale change should have named.
    pub fn stale(&self) -> Option<Epoch> {
        match self {
            ControlError::Refused(Refusal::Stale { current }) => Some(*current),
            _ => None,
        }
    }
}

/// What is wrong with a connection. It cannot go on after any of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Reading or writing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("{what}: no end of it after {ms} ms")]
    Late {
        /// What was to be done.
        what: &'static str,
        /// How long it was waited for.
        ms: u64,
    },
    /// The other side closed it.
    #[error("the connection was closed by the other side")]
    Closed,
    /// A frame was damaged, or is larger than it may be.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame of the data path.
    #[error("not a frame of the control plane: {what}")]
    NotControl {
        /// What it is instead.
        what: String,
    },
    /// An answer to something that was not asked.
    #[error("the answer is none to what was asked: {what}")]
    WrongAnswer {
        /// What is wrong with it.
        what: String,
    },
    /// A message that cannot be turned into bytes, or back.
    #[error("a message of the control plane: {0}")]
    Content(#[from] serde_json::Error),
}

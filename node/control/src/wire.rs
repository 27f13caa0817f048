//! What goes over the wire: frames of `ashlar-layout` whose payload is one message in JSON.
//!
//! Invariants:
//! - a frame is bounded, by its header whose CRC has matched, before anything is allocated for it;
//! - a payload is not looked at before its CRC has matched;
//! - one call is under way on a connection; its answer repeats its number;
//! - the first call says which cluster the caller belongs to, and nothing else is done before that was checked.

use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, Device, MapChange, Node};
use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameError, FrameHeader, Opcode};
use ashlar_layout::ids::{ClusterId, DeviceNo, Epoch, NodeId, PartitionId};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{ControlError, WireError};
use crate::policy::{ChainReport, Verdict};
use crate::state::State;
use crate::token::{Token, TokenHash};
use crate::types::{LogId, MemberId, SnapshotMeta, Types, Vote};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// A control member.
    Member(u32),
    /// Anybody else of the cluster, or one who wants to join it.
    Client,
}

/// The first call of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The caller's cluster.
    pub cluster: ClusterId,
    /// Who calls.
    pub who: Who,
    /// The member that is meant, if one in particular.
    pub to: Option<u32>,
}

/// A call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one at a time on a connection")]
pub enum Call {
    /// Who calls.
    Hello(Hello),
    /// openraft: entries, or a heartbeat.
    Append(AppendEntriesRequest<Types>),
    /// openraft: a candidate asks for a vote.
    Vote(VoteRequest<MemberId>),
    /// openraft: a whole snapshot.
    Snapshot {
        /// The leader's vote.
        vote: Vote,
        /// What it is as of.
        meta: SnapshotMeta,
        /// What is in it.
        state: State,
    },
    /// Whether the member is there, and what it has.
    Ping,
    /// The map.
    Map {
        /// Whether the newest of all is wanted, which takes a quorum; else this member's newest.
        newest: bool,
    },
    /// The map as soon as it is newer than this; nothing if it does not change in time.
    Watch {
        /// The epoch that the caller has.
        after: Epoch,
        /// How long to wait, in milliseconds.
        wait_ms: u64,
    },
    /// A change of the map.
    Change {
        /// The epoch that it is made for.
        expected: Epoch,
        /// The change.
        change: MapChange,
    },
    /// A join token.
    MakeToken {
        /// Its hash.
        hash: TokenHash,
        /// How long it lives, in milliseconds.
        life_ms: u64,
    },
    /// A node joins.
    Join {
        /// Its token.
        token: Token,
        /// The node.
        node: Node,
        /// Its devices.
        devices: Vec<Device>,
        /// Up to which version it reads entries of the journal. Older programs do not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entries: Option<u16>,
    },
    /// A node is there.
    Heartbeat {
        /// Which node.
        node: NodeId,
        /// How the chains are that it has members of.
        chains: Vec<ChainReport>,
        /// Those of its devices that serve. Older nodes do not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serving: Option<Vec<DeviceNo>>,
        /// Up to which version it reads entries of the journal. Older nodes do not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entries: Option<u16>,
    },
    /// How the cluster is.
    Status,
}

impl Call {
    /// Whether it changes what is agreed on.
    pub fn changes(&self) -> bool {
        matches!(
            self,
            Call::Change { .. } | Call::MakeToken { .. } | Call::Join { .. }
        )
    }
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one at a time on a connection")]
pub enum Answer {
    /// To `Hello`.
    Welcome {
        /// The member that answers.
        member: u32,
    },
    /// To `Append`.
    Append(AppendEntriesResponse<MemberId>),
    /// To `Vote`.
    Vote(VoteResponse<MemberId>),
    /// To `Snapshot`.
    Snapshot(SnapshotResponse<MemberId>),
    /// To `Ping`.
    Pong {
        /// Whether it has nothing stored.
        blank: bool,
        /// The index of the last entry of its log.
        last: Option<u64>,
        /// What it has promised. Older members do not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        promise: Option<Promise>,
    },
    /// To `Map` and `Watch`.
    Map(Option<ClusterMap>),
    /// To `Change`, `MakeToken` and `Join`: the map's epoch now.
    Done(Epoch),
    /// To `Heartbeat`.
    Heard {
        /// The newest map's epoch.
        epoch: Epoch,
        /// Where the leader listens: the next one can go straight to it.
        leader: String,
        /// Why devices that are away are not marked out, if that is so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held: Option<String>,
    },
    /// To `Status`.
    Status(Status),
    /// Not done.
    Failed(ControlError),
}

/// Whom a member follows and what it has, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The vote; none before there was any.
    pub vote: Option<Vote>,
    /// The last entry that ever was in its log.
    pub last: Option<LogId>,
    /// Whether it counts in elections.
    pub counts: bool,
}

/// How the cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which cluster.
    pub cluster: ClusterId,
    /// The map's epoch; 0 before there is one.
    pub epoch: Epoch,
    /// Why this is only what one member knows; none when a quorum agreed to it.
    pub doubt: Option<ControlError>,
    /// The member that leads.
    pub leader: Option<u32>,
    /// The control members.
    pub members: Vec<MemberStatus>,
    /// The nodes; none when `doubt` is there, for only the leader hears them.
    pub nodes: Vec<NodeStatus>,
    /// The chains; none when `doubt` is there.
    pub chains: Vec<(PartitionId, Verdict)>,
    /// How each chain is made up, by the newest word of one of its members; none when `doubt` is there.
    #[serde(default)]
    pub reports: Vec<ChainReport>,
    /// Devices that are away, out or not; none when `doubt` is there.
    #[serde(default)]
    pub away: Vec<DeviceNo>,
    /// Devices that are out, as the map says.
    #[serde(default)]
    pub out: Vec<DeviceNo>,
    /// Why those that are away are not marked out, if that is so.
    #[serde(default)]
    pub held: Option<String>,
    /// Why no newer entries of the journal may be written than the map says, if the leader's program knows newer ones.
    #[serde(default)]
    pub entries_held: Option<String>,
    /// Tokens that may yet be used.
    pub tokens: usize,
}

/// How a control member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its number.
    pub id: u32,
    /// Where it listens.
    pub address: String,
    /// Whether it answers.
    pub there: bool,
    /// The index of the last entry in its log.
    pub last: Option<u64>,
    /// Whether it counts in elections: it does not before it has caught up if it has lost what it had stored. None if
    /// it does not answer, or does not say.
    #[serde(default)]
    pub counts: Option<bool>,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which node.
    pub node: NodeId,
    /// Whether it was heard lately.
    pub there: bool,
    /// For how long it has been silent, in milliseconds; since the leader took office if it was never heard.
    pub silent_ms: u64,
    /// Whether it is draining.
    pub draining: bool,
    /// Up to which version it reads entries of the journal, if it says so.
    #[serde(default)]
    pub entries: Option<u16>,
}

/// A message's frame: header and payload.
pub fn encode<T: Serialize>(number: u64, epoch: Epoch, message: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![0; FRAME_HEADER_LEN];
    serde_json::to_writer(&mut bytes, message)?;
    let payload = bytes.get(FRAME_HEADER_LEN..).unwrap_or_default();
    let crc = crc32(payload);
    let header = FrameHeader::new(Opcode::Control, number, epoch, &[], payload.len(), crc)?;
    if let Some(room) = bytes.get_mut(..FRAME_HEADER_LEN) {
        room.copy_from_slice(&header.encode());
    }
    Ok(bytes)
}

/// The next header, bounded by `payload_max`; none if the other side closed between two frames.
pub async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    payload_max: u32,
) -> Result<Option<FrameHeader>, WireError> {
    let io = |source| WireError::Io {
        what: "reading a frame's header",
        source,
    };
    let mut bytes = [0; FRAME_HEADER_LEN];
    let mut have = 0;
    while have < bytes.len() {
        let rest = bytes.get_mut(have..).unwrap_or_default();
        match stream.read(rest).await.map_err(io)? {
            0 if have == 0 => return Ok(None),
            0 => return Err(WireError::Closed),
            n => have += n,
        }
    }
    let header = FrameHeader::decode(&bytes)?;
    if header.opcode != Opcode::Control || header.control_len != 0 {
        return Err(WireError::NotControl {
            what: format!(
                "opcode {:?}, {} bytes of control part",
                header.opcode, header.control_len
            ),
        });
    }
    if header.payload_len > payload_max {
        return Err(WireError::Frame(FrameError::TooLong {
            part: "payload",
            expected: payload_max,
            got: u64::from(header.payload_len),
        }));
    }
    Ok(Some(header))
}

/// The payload that belongs to a header.
pub async fn read_payload(
    stream: &mut (impl AsyncRead + Unpin),
    header: &FrameHeader,
) -> Result<Vec<u8>, WireError> {
    let mut payload = vec![0; header.payload_len as usize];
    stream
        .read_exact(&mut payload)
        .await
        .map_err(|source| WireError::Io {
            what: "reading a frame's payload",
            source,
        })?;
    header.verify_payload(&payload)?;
    Ok(payload)
}

/// The message in a payload.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    Ok(serde_json::from_slice(payload)?)
}

/// Writes a frame.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<(), WireError> {
    let io = |source| WireError::Io {
        what: "writing a frame",
        source,
    };
    stream.write_all(frame).await.map_err(io)?;
    stream.flush().await.map_err(io)
}

/// What comes of `work` if it ends in time.
pub async fn in_time<T>(
    what: &'static str,
    time: Duration,
    work: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    match tokio::time::timeout(time, work).await {
        Ok(done) => done,
        Err(_) => Err(WireError::Late {
            what,
            ms: crate::host::millis(time),
        }),
    }
}

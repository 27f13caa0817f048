//! What a replica keeps beside its index when its log forgets entries, and what it tells of both to one
//! that learns.
//!
//! Invariants:
//! - the requests are a function of the entries that the index covers, so that all replicas that cover the
//!   same entries know the same ones; promise and position are the device's own;
//! - what is decoded takes up exactly the bytes given, and no list more memory than its bytes could name.
//!
//! The bytes are described in FORMAT.md, "Replica state".

use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};

use crate::control::{ControlError, WriteConfig, encode};
use crate::ids::{ClientId, DeviceNo, PartitionId, RequestNo, Seq, Term};

/// Bytes of a replica's state at most: what its bounds on clients and requests allow is less.
pub const STATE_MAX: usize = 64 << 20;
/// Bytes of the items of one lesson at most; one item alone always fits.
pub const ITEMS_MAX: usize = 4 << 20;

type StateConfig = Configuration<true, STATE_MAX>;
type ItemsConfig = Configuration<true, { 4 * ITEMS_MAX }>;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct ReplicaState {
    /// Journal records of the partition up to this record number on the device are in here, or in the
    /// index, or hold entries behind what the index covers.
    pub position: u64,
    /// The newest reign that the replica promised itself to.
    pub promised: Term,
    /// Of which term the last entry is that the index covers.
    pub term: Term,
    /// Entries behind the end of its log may be lost, of reigns up to this one: what it holds is not all that it
    /// ever acknowledged.
    pub doubt: Option<Term>,
    /// The entry that made the chain's composition what it is there; 0: the founders'.
    pub chain_seq: Seq,
    /// The composition's number,
    pub config: u64,
    /// and its members.
    pub members: Vec<DeviceNo>,
    /// The last entry of any client that was forgotten.
    pub forgotten: Seq,
    /// What is known of the requests of clients, by the client's number.
    pub clients: Vec<ClientState>,
    /// What splitting and merging have made of the partition.
    pub bounds: Bounds,
    /// Its device may have had, and lost, other partitions that this one gave away by its entries up to this one; 0: it
    /// has been there ever since this partition began. `u64::MAX`: up to which one is not known yet.
    pub renewed: Seq,
}

/// What splitting and merging have made of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, SchemaWrite, SchemaRead)]
pub struct Bounds {
    /// The first (bucket, key) that it may hold; none: no split or merge has set one.
    pub from: Option<(String, String)>,
    /// The first one behind it that it may not.
    pub to: Option<(String, String)>,
    /// It is closed.
    pub closed: Option<Closed>,
}

/// Where a partition ends that became a part of another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead)]
pub struct Closed {
    /// That other one.
    pub into: PartitionId,
    /// The entry that closed it: its last one that changes anything,
    pub seq: Seq,
    /// and the reign of that.
    pub term: Term,
    /// The chain then, from its head on.
    pub members: Vec<DeviceNo>,
}

/// As it is kept on a device that has always been there, and told to learners: all of it but the last.
#[derive(SchemaWrite, SchemaRead)]
struct Lasting {
    position: u64,
    promised: Term,
    term: Term,
    doubt: Option<Term>,
    chain_seq: Seq,
    config: u64,
    members: Vec<DeviceNo>,
    forgotten: Seq,
    clients: Vec<ClientState>,
    bounds: Bounds,
}

impl From<Lasting> for ReplicaState {
    fn from(kept: Lasting) -> ReplicaState {
        ReplicaState {
            position: kept.position,
            promised: kept.promised,
            term: kept.term,
            doubt: kept.doubt,
            chain_seq: kept.chain_seq,
            config: kept.config,
            members: kept.members,
            forgotten: kept.forgotten,
            clients: kept.clients,
            bounds: kept.bounds,
            renewed: Seq(0),
        }
    }
}

/// As it was kept before there were bounds: all of it but those.
#[derive(SchemaWrite, SchemaRead)]
struct Unbounded {
    position: u64,
    promised: Term,
    term: Term,
    doubt: Option<Term>,
    chain_seq: Seq,
    config: u64,
    members: Vec<DeviceNo>,
    forgotten: Seq,
    clients: Vec<ClientState>,
}

impl From<Unbounded> for ReplicaState {
    fn from(old: Unbounded) -> ReplicaState {
        ReplicaState {
            position: old.position,
            promised: old.promised,
            term: old.term,
            doubt: old.doubt,
            chain_seq: old.chain_seq,
            config: old.config,
            members: old.members,
            forgotten: old.forgotten,
            clients: old.clients,
            bounds: Bounds::default(),
            renewed: Seq(0),
        }
    }
}

/// What is known of a client's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct ClientState {
    /// Its number.
    pub client: ClientId,
    /// Its last entry.
    pub last: Seq,
    /// Requests up to this one are not known any more.
    pub floor: RequestNo,
    /// What it did up to this entry may be forgotten.
    pub forgotten: Seq,
    /// Its requests and the entries that did them.
    pub done: Vec<(RequestNo, Seq)>,
}

impl ReplicaState {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = encode(self);
        if self.renewed == Seq(0) {
            // Older programs read what ends in front of it.
            bytes.truncate(bytes.len() - encode(&self.renewed).len());
        }
        bytes
    }

    /// From all of its bytes.
    pub fn decode(bytes: &[u8]) -> Result<ReplicaState, ControlError> {
        let (expected, got) = (STATE_MAX, bytes.len());
        if got > expected {
            return Err(ControlError::TooLong { expected, got });
        }
        // All of the bytes have to be used up: what is the one kind is never the other.
        if let Ok(old) =
            wincode::config::deserialize_exact::<Unbounded, _>(bytes, StateConfig::new())
        {
            return Ok(old.into());
        }
        if let Ok(kept) =
            wincode::config::deserialize_exact::<Lasting, _>(bytes, StateConfig::new())
        {
            return Ok(kept.into());
        }
        wincode::config::deserialize_exact(bytes, StateConfig::new())
            .map_err(|error| undecodable(got, &error))
    }
}

/// An entry of an index, as it is told to a replica that learns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead)]
pub struct ItemRecord {
    /// Its key, in the index's order.
    pub key: Vec<u8>,
    /// Its version.
    pub version: Seq,
    /// The number of its [`crate::page::EntryKind`].
    pub kind: u8,
    /// Its value, with the payload of an inline object in it.
    pub value: Vec<u8>,
}

/// Entries of an index, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Items {
    /// The entries.
    pub items: Vec<ItemRecord>,
}

impl Items {
    /// Their bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode::<Items>(self)
    }

    /// From all of their bytes.
    pub fn decode(bytes: &[u8]) -> Result<Items, ControlError> {
        let (expected, got) = (ITEMS_MAX, bytes.len());
        if got > expected {
            return Err(ControlError::TooLong { expected, got });
        }
        wincode::config::deserialize_exact(bytes, ItemsConfig::new())
            .map_err(|error| undecodable(got, &error))
    }
}

fn undecodable(len: usize, error: &wincode::ReadError) -> ControlError {
    ControlError::Undecodable {
        len,
        reason: error.to_string(),
    }
}

/// Both are written without a limit.
const _: fn() = || {
    fn writes<T: SchemaWrite<WriteConfig, Src = T>>() {}
    writes::<ReplicaState>();
    writes::<Items>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back() {
        let clients = (1..200).map(|client| ClientState {
            client: ClientId(client),
            last: Seq(client + 5),
            floor: RequestNo(1),
            forgotten: Seq(2),
            done: (2..300).map(|n| (RequestNo(n), Seq(n + client))).collect(),
        });
        let state = ReplicaState {
            position: 7,
            promised: Term(8),
            term: Term(9),
            doubt: Some(Term(6)),
            chain_seq: Seq(10),
            config: 11,
            members: vec![DeviceNo(12), DeviceNo(13)],
            forgotten: Seq(14),
            clients: clients.collect(),
            bounds: Bounds {
                from: Some(("a".to_owned(), String::new())),
                to: Some(("b".to_owned(), "k".to_owned())),
                closed: Some(Closed {
                    into: PartitionId(3),
                    seq: Seq(15),
                    term: Term(9),
                    members: vec![DeviceNo(13), DeviceNo(12)],
                }),
            },
            renewed: Seq(16),
        };
        let mut bytes = state.encode();
        assert_eq!(ReplicaState::decode(&bytes), Ok(state));
        bytes.push(0);
        assert!(ReplicaState::decode(&bytes).is_err());
        bytes.truncate(bytes.len() - 2);
        assert!(ReplicaState::decode(&bytes).is_err());
        assert!(ReplicaState::decode(&[0xff; 200]).is_err());
    }

    #[test]
    fn a_device_that_was_always_there_writes_what_older_programs_read() {
        let kept = || Lasting {
            position: 7,
            promised: Term(8),
            term: Term(9),
            doubt: Some(Term(3)),
            chain_seq: Seq(10),
            config: 11,
            members: vec![DeviceNo(12)],
            forgotten: Seq(14),
            clients: Vec::new(),
            bounds: Bounds::default(),
        };
        let bytes = encode::<Lasting>(&kept());
        let state = ReplicaState::from(kept());
        assert_eq!(state.encode(), bytes);
        assert_eq!(ReplicaState::decode(&bytes), Ok(state));
    }

    #[test]
    fn a_state_of_before_there_were_bounds_is_read() {
        let old = || Unbounded {
            position: 7,
            promised: Term(8),
            term: Term(9),
            doubt: None,
            chain_seq: Seq(10),
            config: 11,
            members: vec![DeviceNo(12)],
            forgotten: Seq(14),
            clients: Vec::new(),
        };
        let bytes = encode::<Unbounded>(&old());
        assert_eq!(ReplicaState::decode(&bytes), Ok(old().into()));
    }

    #[test]
    fn items_come_back() {
        let item = |n: u8| ItemRecord {
            key: vec![n; 9],
            version: Seq(u64::from(n)),
            kind: n,
            value: vec![n; 40_000],
        };
        let items = Items {
            items: vec![item(1), item(2)],
        };
        assert_eq!(Items::decode(&items.encode()), Ok(items));
        assert!(Items::decode(&vec![0; ITEMS_MAX + 1]).is_err());
        // A length that no bytes stand behind allocates nothing.
        assert!(Items::decode(&u64::MAX.to_le_bytes()).is_err());
    }
}

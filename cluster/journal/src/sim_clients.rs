//! Clients of the simulated store, the history that they see, and the model that judges it.
//!
//! What must hold at the end: the head's log, applied by a plain model, explains everything:
//! - every answer `Committed { seq }` names the entry that holds that very request;
//! - every request is in the log at most once; a refused one not at all;
//! - a condition held where its entry stands; a refusal was right at some moment between question
//!   and answer; a read saw exactly what was committed when it was made, never less than what was
//!   acknowledged before.

use std::collections::BTreeMap;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{ClientId, PgId, RequestNo, Seq, StripeId};
use ashlar_layout::journal::Entry;
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition, Stripe};
use ashlar_layout::message::{ErrorCode, Reply, WireError};
use bytes::Bytes;

use crate::api::{Event, ListParams};
use crate::sim::{MICRO, MILLI, World};
use crate::sim_device::Rng;

const CLIENTS: u64 = 4;
const OPS: usize = 25;

#[derive(Clone, Debug)]
struct Current {
    request: RequestNo,
    precondition: Precondition,
    op: Op,
    inline: Bytes,
    since: u64,
    /// The last entry that the client had been told of when it asked first.
    told: u64,
    attempt: u64,
}

#[derive(Clone, Debug)]
struct Client {
    id: ClientId,
    next: u64,
    done: usize,
    told: u64,
    current: Option<Current>,
}

#[derive(Clone, Debug)]
struct Refused {
    from: u64,
    to: u64,
    code: ErrorCode,
    client: ClientId,
    current: Current,
}

type Contents = BTreeMap<(String, String), u64>;

#[derive(Clone, Debug)]
struct Seen {
    committed: u64,
    contents: Contents,
    buckets: Vec<String>,
}

pub(crate) struct Clients {
    clients: Vec<Client>,
    attempts: u64,
    asked: BTreeMap<u64, (usize, RequestNo)>,
    acked: BTreeMap<u64, (ClientId, RequestNo)>,
    refused: Vec<Refused>,
    seen: Vec<Seen>,
    acked_max: u64,
    lost: Vec<Seq>,
}

impl Clients {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let clients = (0..CLIENTS)
            .map(|_| Client {
                id: ClientId(rng.next()),
                next: 1,
                done: 0,
                told: 0,
                current: None,
            })
            .collect();
        Self {
            clients,
            attempts: 0,
            asked: BTreeMap::new(),
            acked: BTreeMap::new(),
            refused: Vec::new(),
            seen: Vec::new(),
            acked_max: 0,
            lost: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn head_crashed(&mut self, node: u8) {
        if node == 0 {
            self.lost.clear();
        }
    }

    pub(crate) fn finished(&self) -> bool {
        self.clients
            .iter()
            .all(|client| client.done >= OPS && client.current.is_none())
            && self.lost.is_empty()
    }
}

fn bucket(rng: &mut Rng) -> String {
    ["first", "second"][rng.below(2) as usize].to_owned()
}

fn key(rng: &mut Rng) -> String {
    ["a", "a/b", "a/c", "é", "z"][rng.below(5) as usize].to_owned()
}

fn random_op(rng: &mut Rng, newest: u64) -> (Op, Precondition, Bytes) {
    let precondition = match rng.below(6) {
        0 | 1 => Precondition::Absent,
        2 => Precondition::Present,
        3 => Precondition::Version(Seq(newest.saturating_sub(rng.below(4)))),
        _ => Precondition::None,
    };
    let none = (Precondition::None, Bytes::new());
    match rng.below(20) {
        0 | 1 => (
            Op::CreateBucket {
                bucket: bucket(rng),
            },
            none.0,
            none.1,
        ),
        2 => (
            Op::DeleteBucket {
                bucket: bucket(rng),
            },
            none.0,
            none.1,
        ),
        3..=6 => (
            Op::Delete {
                bucket: bucket(rng),
                key: key(rng),
            },
            precondition,
            none.1,
        ),
        7..=10 => {
            let id = StripeId {
                writer: rng.next(),
                attempt: 1,
            };
            let stripe = Stripe {
                id,
                pg: PgId(1),
                k: 2,
                m: 1,
                data_len: 100,
                shard_crcs: vec![1, 2, 3],
            };
            let manifest = Manifest {
                size: 100,
                crc: 9,
                body: Body::Stripes(vec![stripe]),
            };
            (
                Op::Put {
                    bucket: bucket(rng),
                    key: key(rng),
                    manifest,
                },
                precondition,
                none.1,
            )
        }
        _ => {
            let inline = vec![rng.next() as u8; rng.below(150) as usize];
            let manifest = Manifest {
                size: inline.len() as u64,
                crc: crc32(&inline),
                body: Body::Inline,
            };
            let op = Op::Put {
                bucket: bucket(rng),
                key: key(rng),
                manifest,
            };
            (op, precondition, Bytes::from(inline))
        }
    }
}

impl World {
    /// A client's time has come: to propose, or to do it again.
    pub(crate) fn client_goes_on(&mut self, client: usize, attempt: u64) {
        let committed = self.committed();
        let held = &mut self.clients.clients[client];
        match &held.current {
            // Answered since, or asked again since.
            Some(current) if current.attempt != attempt => return,
            None if held.done >= OPS => return,
            None => {
                let (op, precondition, inline) = random_op(&mut self.rng, committed);
                let request = RequestNo(held.next);
                held.next += 1;
                let since = committed;
                held.current = Some(Current {
                    request,
                    precondition,
                    op,
                    inline,
                    since,
                    told: held.told,
                    attempt: 0,
                });
            }
            Some(_) => {}
        }
        let Some(current) = &mut held.current else {
            return;
        };
        let retry = (current.attempt != 0).then_some(Seq(current.told));
        self.clients.attempts += 1;
        let attempt = self.clients.attempts;
        current.attempt = attempt;
        self.clients
            .asked
            .insert(attempt, (client, current.request));
        let event = Event::Propose {
            reply_to: attempt,
            client: held.id,
            request: current.request,
            retry,
            precondition: current.precondition,
            op: current.op.clone(),
            inline: current.inline.clone(),
            wall_ms: self.now / MILLI,
        };
        let delay = 10 * MICRO + self.rng.below(50 * MICRO);
        self.tell_head(delay, event);
        let patience = 2 * MILLI + self.rng.below(40 * MILLI);
        self.client_later(patience, client, attempt);
        self.look();
    }

    pub(crate) fn replied(&mut self, reply_to: u64, reply: Reply) {
        let (client, request) = self
            .clients
            .asked
            .remove(&reply_to)
            .expect("one answer for each question");
        let committed = self.committed();
        let id = self.clients.clients[client].id;
        if let Reply::Committed { seq, .. } = reply {
            assert!(seq.0 <= committed, "acknowledged, not committed");
            self.clients.acked_max = self.clients.acked_max.max(seq.0);
            let before = self.clients.acked.insert(seq.0, (id, request));
            assert!(
                before.is_none_or(|b| b == (id, request)),
                "entry {seq} for two requests"
            );
        }
        let held = &mut self.clients.clients[client];
        if let Reply::Committed { seq, .. } = reply {
            held.told = held.told.max(seq.0);
        }
        let Some(current) = held.current.take_if(|current| current.request == request) else {
            return;
        };
        match reply {
            Reply::Committed { .. } => self.count("committed"),
            Reply::Error(WireError {
                code: ErrorCode::OutcomeUnknown,
                ..
            }) => self.count("unknown"),
            Reply::Error(WireError {
                code: ErrorCode::PartitionUnavailable | ErrorCode::NotServing | ErrorCode::Busy,
                ..
            }) => {
                let attempt = current.attempt;
                held.current = Some(current);
                self.client_later(3 * MILLI, client, attempt);
                return self.count("put off");
            }
            Reply::Error(error) => {
                self.count("refused");
                let from = current.since;
                let code = error.code;
                self.clients.refused.push(Refused {
                    from,
                    to: committed,
                    code,
                    client: id,
                    current,
                });
            }
            other => panic!("not an answer to a proposal: {other:?}"),
        }
        self.clients.clients[client].done += 1;
        let delay = self.rng.below(4 * MILLI);
        self.client_later(delay, client, 0);
    }

    /// Reads at the head, if it serves.
    fn look(&mut self) {
        let Some(replica) = &self.nodes[0].replica else {
            return;
        };
        if !replica.serving() {
            assert!(
                replica.lookup("first", "a").is_err(),
                "answered while not serving"
            );
            return;
        }
        let committed = replica.committed.0;
        assert!(
            committed >= self.clients.acked_max,
            "a read would miss what was acknowledged"
        );
        let (buckets, _) = replica.list_buckets("", 100).unwrap();
        let buckets: Vec<String> = buckets.into_iter().map(|bucket| bucket.name).collect();
        let mut contents = Contents::new();
        let mut unreadable = Vec::new();
        for bucket in &buckets {
            let params = ListParams {
                bucket: bucket.clone(),
                max: 100,
                ..ListParams::default()
            };
            for object in replica.list(&params).unwrap().objects {
                let (meta, inline) = replica.lookup(bucket, &object.key).unwrap();
                assert_eq!(meta.version, object.version);
                if let Some(inline) = inline {
                    let bytes = self.nodes[0].device.read(inline.at, inline.len);
                    let good = bytes.as_ref().is_some_and(|bytes| {
                        let entry = Entry::decode(bytes).expect("what is not rotten is whole");
                        assert_eq!(
                            (entry.header.seq, entry.header.term),
                            (inline.seq, inline.term)
                        );
                        assert_eq!(crc32(entry.inline), meta.manifest.crc);
                        true
                    });
                    if !good {
                        unreadable.push(inline.seq);
                    }
                }
                contents.insert((bucket.clone(), object.key), meta.version.0);
            }
        }
        self.clients.seen.push(Seen {
            committed,
            contents,
            buckets,
        });
        for seq in unreadable {
            if !self.clients.lost.contains(&seq) {
                self.clients.lost.push(seq);
                self.tell_head(0, Event::InlineLost { seq });
            }
        }
    }

    pub(crate) fn restored(&mut self, node: u8, seq: Seq, result: Result<(), WireError>) {
        assert_eq!(node, 0, "only the head was asked");
        self.clients.lost.retain(|lost| *lost != seq);
        self.count(if result.is_ok() {
            "restored"
        } else {
            "not restored"
        });
    }

    pub(crate) fn unfinished(&self) -> String {
        let clients: Vec<_> = self
            .clients
            .clients
            .iter()
            .map(|c| (c.done, &c.current))
            .collect();
        format!("{clients:?}, lost {:?}", self.clients.lost)
    }

    /// Judges the whole history by the head's log.
    pub(crate) fn judge(&self) {
        let head = self.nodes[0].replica.as_ref().expect("the head runs");
        let mut model = Model::default();
        let mut at = BTreeMap::new();
        self.compare(&model, 0);
        for seq in 1..=head.log.last().0 {
            let slot = *head.log.slot(Seq(seq)).expect("no holes in a head's log");
            let bytes = match head.log.recent(Seq(seq)) {
                Some(bytes) => bytes.clone(),
                None => match self.nodes[0].device.read(slot.at, slot.len) {
                    Some(bytes) => bytes,
                    // Rotten, and nobody has read it since: the others hold it.
                    None => self.elsewhere(seq),
                },
            };
            let entry = Entry::decode(&bytes).unwrap();
            assert_eq!((entry.header.seq.0, entry.header.term), (seq, slot.term));
            let op = entry.op().unwrap();
            if op != Op::TermStart {
                let name = (entry.header.client, entry.header.request);
                let before = at.insert(name, seq);
                assert!(
                    before.is_none(),
                    "request {name:?} is in the log twice: {before:?}, {seq}"
                );
                assert!(
                    !model
                        .refuses(&op, Precondition::None)
                        .is_some_and(bucket_error)
                );
            }
            model.apply(seq, op);
            self.compare(&model, seq);
        }
        for (seq, name) in &self.clients.acked {
            assert_eq!(
                at.get(name),
                Some(seq),
                "acknowledged entry {seq} of {name:?} is lost"
            );
        }
        for refused in &self.clients.refused {
            let name = (refused.client, refused.current.request);
            assert_eq!(at.get(&name), None, "refused, but done: {refused:?}");
        }
        assert_eq!(
            self.refusals_explained(head.log.last().0),
            self.clients.refused.len()
        );
    }

    fn elsewhere(&self, seq: u64) -> Bytes {
        let read = |node: &crate::sim::Node| {
            let slot = *node.replica.as_ref()?.log.slot(Seq(seq))?;
            node.device.read(slot.at, slot.len)
        };
        self.nodes[1..]
            .iter()
            .find_map(read)
            .expect("some replica holds every entry")
    }

    fn compare(&self, model: &Model, seq: u64) {
        for seen in self
            .clients
            .seen
            .iter()
            .filter(|seen| seen.committed == seq)
        {
            assert_eq!(seen.buckets, model.buckets, "buckets, after entry {seq}");
            assert_eq!(seen.contents, model.contents, "objects, after entry {seq}");
        }
    }

    /// How many refusals were right at some moment between question and answer.
    fn refusals_explained(&self, last: u64) -> usize {
        let mut left: Vec<&Refused> = self.clients.refused.iter().collect();
        let head = self.nodes[0].replica.as_ref().expect("the head runs");
        let mut model = Model::default();
        for seq in 0..=last {
            if seq > 0 {
                let slot = *head.log.slot(Seq(seq)).unwrap();
                let bytes = head.log.recent(Seq(seq)).cloned();
                let bytes = bytes.or_else(|| self.nodes[0].device.read(slot.at, slot.len));
                let bytes = bytes.unwrap_or_else(|| self.elsewhere(seq));
                model.apply(seq, Entry::decode(&bytes).unwrap().op().unwrap());
            }
            left.retain(|refused| {
                let Current {
                    op, precondition, ..
                } = &refused.current;
                let now = (refused.from..=refused.to).contains(&seq);
                !(now && model.refuses(op, *precondition) == Some(refused.code))
            });
        }
        for refused in &left {
            eprintln!("never right: {refused:?}");
        }
        self.clients.refused.len() - left.len()
    }
}

fn bucket_error(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NoSuchBucket | ErrorCode::BucketExists | ErrorCode::BucketNotEmpty
    )
}

/// The plainest store there is.
#[derive(Clone, Debug, Default)]
struct Model {
    buckets: Vec<String>,
    contents: Contents,
}

impl Model {
    fn refuses(&self, op: &Op, precondition: Precondition) -> Option<ErrorCode> {
        let exists = |bucket: &String| self.buckets.contains(bucket);
        match op {
            Op::TermStart => Some(ErrorCode::BadRequest),
            Op::CreateBucket { bucket } => exists(bucket).then_some(ErrorCode::BucketExists),
            Op::DeleteBucket { bucket } if !exists(bucket) => Some(ErrorCode::NoSuchBucket),
            Op::DeleteBucket { bucket } => {
                let empty = !self.contents.keys().any(|(b, _)| b == bucket);
                (!empty).then_some(ErrorCode::BucketNotEmpty)
            }
            Op::Put { bucket, .. } | Op::Delete { bucket, .. } if !exists(bucket) => {
                Some(ErrorCode::NoSuchBucket)
            }
            Op::Put { bucket, key, .. } | Op::Delete { bucket, key } => {
                let version = self.contents.get(&(bucket.clone(), key.clone()));
                let holds = match precondition {
                    Precondition::None => true,
                    Precondition::Absent => version.is_none(),
                    Precondition::Present => version.is_some(),
                    Precondition::Version(seq) => version == Some(&seq.0),
                };
                (!holds).then_some(ErrorCode::PreconditionFailed)
            }
        }
    }

    fn apply(&mut self, seq: u64, op: Op) {
        match op {
            Op::TermStart => {}
            Op::CreateBucket { bucket } => {
                self.buckets.push(bucket);
                self.buckets.sort();
            }
            Op::DeleteBucket { bucket } => self.buckets.retain(|held| *held != bucket),
            Op::Put { bucket, key, .. } => {
                self.contents.insert((bucket, key), seq);
            }
            Op::Delete { bucket, key } => {
                self.contents.remove(&(bucket, key));
            }
        }
    }
}

//! Clients of the simulated store, the history that they see, and the model that judges it.
//!
//! A client asks any replica who reigns, names that reign in its request, and asks again when it has
//! waited long enough: from then on the earlier attempt's answer counts no more, whenever that attempt
//! is carried out.
//!
//! What must hold at the end: the head's log, applied by a plain model, explains everything:
//! - every answer `Committed { seq }` names the entry that holds that very request;
//! - every request is in the log at most once; a refused one not at all;
//! - a condition held where its entry stands; a refusal was right at some moment between question
//!   and answer; a read saw exactly what was committed when it was made, never less than what was
//!   acknowledged before.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_cluster_index::Name;
use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{ClientId, PgId, RequestNo, Seq, StripeId, Term};
use ashlar_layout::journal::Entry;
use ashlar_layout::lock::{Lock, Retention, RetentionMode};
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition, Stripe, Then, VersionTag};
use ashlar_layout::message::{ErrorCode, Reply, WireError};
use bytes::Bytes;

use crate::api::Event;
use crate::pending::{source, target};
use crate::sim::{MICRO, MILLI, World, node_of};
use crate::sim_device::Rng;
use crate::sim_model::{Brief, Contents, Model, Version};
use crate::sim_moves::moving_op;

const CLIENTS: u64 = 4;
const OPS: usize = 25;

#[derive(Clone, Debug)]
struct Current {
    request: RequestNo,
    precondition: Precondition,
    op: Op,
    inline: Bytes,
    since: u64,
    /// The wall clock when it was asked first: locks last longest then.
    asked_ms: u64,
    /// The last entry that the client had been told of when it asked first.
    told: Option<u64>,
    attempt: u64,
}

#[derive(Clone, Debug)]
struct Client {
    id: ClientId,
    next: u64,
    done: usize,
    told: u64,
    current: Option<Current>,
    /// Whom it takes for the head, and of which reign.
    head: Option<(u8, Term)>,
}

#[derive(Clone, Debug)]
struct Refused {
    from: u64,
    to: u64,
    code: ErrorCode,
    client: ClientId,
    current: Current,
}

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) committed: u64,
    pub(crate) contents: Contents,
    /// All versions, in the order of the listing.
    pub(crate) versions: Vec<Version>,
    pub(crate) buckets: Vec<String>,
}

pub(crate) struct Clients {
    clients: Vec<Client>,
    attempts: u64,
    asked: BTreeMap<u64, (usize, RequestNo)>,
    acked: BTreeMap<u64, (ClientId, RequestNo)>,
    refused: Vec<Refused>,
    seen: Vec<Seen>,
    acked_max: u64,
    read_max: u64,
    lost: Vec<(u8, Name, Seq)>,
    /// What entries were said to have displaced.
    displaced: BTreeMap<u64, Manifest>,
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
                head: None,
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
            read_max: 0,
            lost: Vec::new(),
            displaced: BTreeMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn crashed(&mut self, node: u8) {
        self.lost.retain(|(at, ..)| *at != node);
    }

    /// Whether that is new.
    pub(crate) fn lose(&mut self, node: u8, name: Name, version: Seq) -> bool {
        let lost = (node, name, version);
        let new = !self.lost.contains(&lost);
        if new {
            self.lost.push(lost);
        }
        new
    }

    /// What every later read must see.
    pub(crate) fn seen_max(&self) -> u64 {
        self.acked_max.max(self.read_max)
    }

    pub(crate) fn saw(&mut self, seen: Seen) {
        self.read_max = self.read_max.max(seen.committed);
        self.seen.push(seen);
    }

    /// A version as somebody read it before.
    pub(crate) fn seen_before(&self, brief: &Brief) -> Option<&Version> {
        let versions = self.seen.iter().rev().flat_map(|seen| &seen.versions);
        versions.into_iter().find(|it| it.brief() == *brief)
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

pub(crate) fn key(rng: &mut Rng) -> String {
    ["a", "a/b", "a/c", "é", "z"][rng.below(5) as usize].to_owned()
}

fn random_op(
    rng: &mut Rng,
    newest: u64,
    now_ms: u64,
    seen: Option<&Seen>,
) -> (Op, Precondition, Bytes) {
    let precondition = match rng.below(6) {
        0 | 1 => Precondition::Absent,
        2 => Precondition::Present,
        3 => Precondition::Version(Seq(newest.saturating_sub(rng.below(4)))),
        _ => Precondition::None,
    };
    let known = seen.map_or(&[][..], |seen| &seen.versions);
    if rng.one_in(8)
        && let Some((op, inline)) = moving_op(rng, known)
    {
        return (op, precondition, inline);
    }
    if rng.one_in(2) {
        return version_op(rng, precondition, now_ms, known);
    }
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
        _ => {
            let (manifest, inline) = content(rng);
            let op = Op::Put {
                bucket: bucket(rng),
                key: key(rng),
                manifest,
            };
            (op, precondition, inline)
        }
    }
}

/// Something that an object may be made of, and its bytes, if they are few.
fn content(rng: &mut Rng) -> (Manifest, Bytes) {
    if rng.one_in(3) {
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
        let manifest = Manifest::plain(100, 9, Body::Stripes(vec![stripe]));
        return (manifest, Bytes::new());
    }
    let inline = vec![rng.next() as u8; rng.below(150) as usize];
    let manifest = Manifest::plain(inline.len() as u64, crc32(&inline), Body::Inline);
    (manifest, Bytes::from(inline))
}

/// Something that keeps a version, for a while or until somebody says otherwise; or nothing.
fn lock(rng: &mut Rng, now_ms: u64) -> Lock {
    let modes = [RetentionMode::Governance, RetentionMode::Compliance];
    let retention = Retention {
        mode: modes[rng.below(2) as usize],
        until_ms: now_ms + rng.below(60),
    };
    Lock {
        retention: Some(retention).filter(|_| rng.one_in(2)),
        hold: [None, None, Some(false), Some(true)][rng.below(4) as usize],
    }
}

/// A change of versions: a new one, or one of those that somebody saw.
fn version_op(
    rng: &mut Rng,
    precondition: Precondition,
    now_ms: u64,
    seen: &[Version],
) -> (Op, Precondition, Bytes) {
    // What nobody could read cannot be written anew.
    let whole = |it: &Version| {
        let inline = it.manifest.body == Body::Inline;
        !inline || it.payload.len() as u64 == it.manifest.size
    };
    let known = match seen.len() {
        0 => None,
        len => Some(rng.below(len as u64) as usize),
    };
    let next_is_whole = |at: usize| seen.get(at + 1).is_none_or(whole);
    let known = known.filter(|at| whole(&seen[*at]) && next_is_whole(*at));
    if let Some(at) = known.filter(|_| rng.one_in(2)) {
        let it = &seen[at];
        let first = !seen[..at].iter().any(|other| other.place == it.place);
        let next = seen.get(at + 1).filter(|next| next.place == it.place);
        let (bucket, key) = it.place.clone();
        let condition = Precondition::Version(Seq(it.entry));
        if rng.one_in(3) {
            // With another lock: a plain one is made a version by that, too.
            let op = Op::LockVersion {
                bucket,
                key,
                tag: VersionTag {
                    lock: lock(rng, now_ms),
                    ..it.tag()
                },
                seen: Seq(it.entry),
                current: first,
                modified_ms: 7,
                manifest: it.manifest.clone(),
                bypass: rng.one_in(2),
            };
            return (op, Precondition::None, it.payload.clone());
        }
        if rng.one_in(3) {
            // It is written anew: a plain one is made a version by that, the null one as a rule.
            let own_name = first && it.null && it.id == it.entry && rng.one_in(4);
            let op = Op::PutVersion {
                bucket,
                key,
                tag: VersionTag {
                    null: it.null && !own_name,
                    ..it.tag()
                },
                current: first,
                modified_ms: 7,
                manifest: it.manifest.clone(),
            };
            let condition = if first { condition } else { Precondition::None };
            return (op, condition, it.payload.clone());
        }
        let (then, payload) = match next {
            _ if !first => (Then::Same, Bytes::new()),
            None => (Then::Nothing, Bytes::new()),
            Some(next) => {
                let then = Then::Version {
                    tag: next.tag(),
                    seen: Seq(next.entry),
                    modified_ms: 7,
                    manifest: next.manifest.clone(),
                };
                (then, next.payload.clone())
            }
        };
        let condition = if first { condition } else { Precondition::None };
        let id = it.tag().slot();
        let op = Op::DropVersion {
            bucket,
            key,
            id,
            then,
            bypass: rng.one_in(3),
        };
        return (op, condition, payload);
    }
    let marker = rng.one_in(4);
    let tag = VersionTag {
        id: Seq(0),
        null: rng.one_in(4),
        marker,
        lock: match marker || rng.one_in(2) {
            true => Lock::NONE,
            false => lock(rng, now_ms),
        },
    };
    let (manifest, inline) = match tag.marker {
        true => (Manifest::plain(0, 0, Body::Inline), Bytes::new()),
        false => content(rng),
    };
    let op = Op::PutVersion {
        bucket: bucket(rng),
        key: key(rng),
        tag,
        current: true,
        modified_ms: 0,
        manifest,
    };
    (op, precondition, inline)
}

impl World {
    /// A client's time has come: to propose, or to do it again.
    pub(crate) fn client_goes_on(&mut self, client: usize, attempt: u64) {
        let committed = self.committed();
        let seen = self.clients.seen.last().cloned();
        let now_ms = self.now / MILLI;
        let held = &mut self.clients.clients[client];
        match &held.current {
            // Answered since, or asked again since.
            Some(current) if current.attempt != attempt => return,
            None if held.done >= OPS => return,
            None => {
                let (op, precondition, inline) =
                    random_op(&mut self.rng, committed, now_ms, seen.as_ref());
                let request = RequestNo(held.next);
                held.next += 1;
                let since = committed;
                held.current = Some(Current {
                    request,
                    precondition,
                    op,
                    inline,
                    since,
                    asked_ms: now_ms,
                    told: None,
                    attempt: 0,
                });
            }
            Some(_) => {}
        }
        self.clients.attempts += 1;
        let attempt = self.clients.attempts;
        if let Some(current) = &mut self.clients.clients[client].current {
            current.attempt = attempt;
        }
        self.look();
        let Some((node, term)) = self.find_head(client) else {
            let delay = 500 * MICRO + self.rng.below(5 * MILLI);
            return self.client_later(delay, client, attempt);
        };
        let held = &mut self.clients.clients[client];
        let told = held.told;
        let Some(current) = &mut held.current else {
            return;
        };
        let retry = current.told.map(Seq);
        current.told.get_or_insert(told);
        self.clients
            .asked
            .insert(attempt, (client, current.request));
        let event = Event::Propose {
            reply_to: attempt,
            term,
            client: held.id,
            request: current.request,
            retry,
            precondition: current.precondition,
            op: current.op.clone(),
            inline: current.inline.clone(),
            wall_ms: now_ms,
        };
        // A first attempt that arrives when its client was forgotten, after its own retry, is done
        // again: the one thing that is promised only within the bounds (see the table of requests).
        let lies = self.plan.jitter && !self.plan.forgetful && self.rng.one_in(20);
        let long = if lies { 200 * MILLI } else { 50 * MICRO };
        let delay = 10 * MICRO + self.rng.below(long);
        self.tell_later(delay, node, event);
        let patience = 2 * MILLI + self.rng.below(40 * MILLI);
        self.client_later(patience, client, attempt);
    }

    /// Whom this client takes for the head; asks somebody if it knows nobody.
    fn find_head(&mut self, client: usize) -> Option<(u8, Term)> {
        if let Some(head) = self.clients.clients[client].head.take() {
            return Some(head);
        }
        let any = self.rng.below(self.nodes.len() as u64) as u8;
        let ask = |node: u8| {
            let held = &self.nodes[usize::from(node)];
            let replica = held.replica.as_ref().filter(|_| !held.paused)?;
            Some(replica.view(held.clock(self.now)))
        };
        let mut view = ask(any)?;
        let mut asked = any;
        if !view.serving && view.term != Term(0) {
            asked = node_of(view.term.head());
            view = ask(asked)?;
        }
        let held = &mut self.clients.clients[client];
        held.told = held.told.max(view.committed.0);
        view.serving.then_some((asked, view.term))
    }

    pub(crate) fn replied(&mut self, reply_to: u64, reply: Reply) {
        let (client, request) = self
            .clients
            .asked
            .remove(&reply_to)
            .expect("one answer for each question");
        let committed = self.committed();
        let id = self.clients.clients[client].id;
        if let Reply::Committed {
            seq,
            displaced: Some(displaced),
        } = &reply
        {
            self.clients.displaced.insert(seq.0, displaced.clone());
        }
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
        // An attempt that was given up counts no more.
        let mine =
            |current: &mut Current| current.request == request && current.attempt == reply_to;
        let Some(current) = held.current.take_if(mine) else {
            return;
        };
        match reply {
            Reply::Committed { .. } => {
                match current.op {
                    Op::LockVersion { .. } => self.count("relocked"),
                    Op::Rename { .. } => self.count("renamed"),
                    Op::Relocate { .. } => self.count("relocated"),
                    _ => {}
                }
                self.count("committed");
            }
            Reply::Error(WireError {
                code: ErrorCode::OutcomeUnknown,
                ..
            }) => self.count("unknown"),
            Reply::Error(WireError {
                code:
                    ErrorCode::PartitionUnavailable
                    | ErrorCode::NotServing
                    | ErrorCode::NotHead
                    | ErrorCode::Corrupt
                    | ErrorCode::Busy,
                ..
            }) => {
                let attempt = current.attempt;
                held.current = Some(current);
                self.client_later(3 * MILLI, client, attempt);
                return self.count("put off");
            }
            Reply::Error(error) => {
                if error.code == ErrorCode::Locked {
                    self.count("locked");
                }
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

    pub(crate) fn restored(
        &mut self,
        node: u8,
        name: Name,
        version: Seq,
        result: Result<(), WireError>,
    ) {
        let ended = (node, name, version);
        self.clients.lost.retain(|lost| *lost != ended);
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
            .map(|c| (c.done, c.told, &c.current))
            .collect();
        format!("{clients:?}, lost {:?}", self.clients.lost)
    }

    /// Judges the whole history by the head's log.
    pub(crate) fn judge(&self) {
        let head = self.head();
        let mut model = Model::default();
        let mut at = BTreeMap::new();
        let mut changes = BTreeMap::new();
        self.compare(&model, 0);
        let last = head.log.last().0;
        assert_eq!(last, self.committed(), "all is committed");
        for seq in 1..=last {
            let entry = Entry::decode(self.bytes_of(seq)).unwrap();
            assert_eq!(entry.header.seq.0, seq);
            let op = entry.op().unwrap();
            let (bucket, key) = target(&op);
            for key in [key].into_iter().chain(source(&op)) {
                let name = (bucket.to_owned(), key.to_owned());
                changes.entry(name).or_insert_with(Vec::new).push(seq);
            }
            let own = matches!(
                op,
                Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. }
            );
            if !own {
                let name = (entry.header.client, entry.header.request);
                let before = at.insert(name, seq);
                assert!(
                    before.is_none(),
                    "request {name:?} is in the log twice: {before:?}, {seq}"
                );
                let refused = model.refuses(&op, Precondition::None, entry.header.time_ms);
                assert_eq!(refused, None, "{op:?} at {:?}", model.versions());
            }
            let before = model.stripes();
            model.apply(seq, op);
            if let Some(displaced) = self.clients.displaced.get(&seq) {
                // What was told to be freed is what nothing names any more, all of it and nothing else.
                let stripes = displaced.body.stripes().iter();
                let freed: BTreeSet<StripeId> = stripes.map(|stripe| stripe.id).collect();
                let after = model.stripes();
                let gone: BTreeSet<StripeId> = before.difference(&after).copied().collect();
                assert_eq!(freed, gone, "freed by entry {seq}");
            }
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
        self.judge_cached(&changes);
        assert_eq!(self.refusals_explained(last), self.clients.refused.len());
    }

    fn compare(&self, model: &Model, seq: u64) {
        for seen in self
            .clients
            .seen
            .iter()
            .filter(|seen| seen.committed == seq)
        {
            assert_eq!(seen.buckets, model.buckets, "buckets, after entry {seq}");
            assert_eq!(
                seen.contents,
                model.contents(),
                "objects, after entry {seq}"
            );
            let versions: Vec<_> = seen.versions.iter().map(Version::brief).collect();
            assert_eq!(versions, model.versions(), "versions, after entry {seq}");
        }
    }

    /// How many refusals were right at some moment between question and answer.
    fn refusals_explained(&self, last: u64) -> usize {
        let mut left: Vec<&Refused> = self.clients.refused.iter().collect();
        let mut model = Model::default();
        for seq in 0..=last {
            if seq > 0 {
                let entry = Entry::decode(self.bytes_of(seq)).unwrap();
                model.apply(seq, entry.op().unwrap());
            }
            left.retain(|refused| {
                let Current {
                    op,
                    precondition,
                    asked_ms,
                    ..
                } = &refused.current;
                let now = (refused.from..=refused.to).contains(&seq);
                !(now && model.refuses(op, *precondition, *asked_ms) == Some(refused.code))
            });
        }
        for refused in &left {
            eprintln!("never right: {refused:?}");
        }
        self.clients.refused.len() - left.len()
    }
}

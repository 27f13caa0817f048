//! Clients of a store whose partitions are split and merged under their hands.
//!
//! A client goes by its own map, which may be old. It asks somebody of the partition's chain who reigns, and asks
//! again, whoever it is then, when it is refused or has waited long enough; a change keeps its number, and says what it
//! knew of the partition that was asked first. A list goes from partition to partition, and begins anew when one of
//! them has moved. What was read can be asked for again of witnesses alone.

use std::collections::BTreeMap;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{ClientId, PartitionId, RequestNo, Seq};
use ashlar_layout::journal::Entry;
use ashlar_layout::manifest::{Body, Manifest, NULL_VERSION, Op, Precondition, Then, VersionTag};
use ashlar_layout::message::{ErrorCode, ListPage, Reply, WireError};
use ashlar_layout::slot::slot_of;
use bytes::Bytes;

use crate::api::{Answer, Ask, Event, ListParams};
use crate::sim::{MICRO, MILLI, node_of};
use crate::sim_device::Rng;
use crate::sim_family::{Happening, World};
use crate::sim_family_judge::renames;
use crate::sim_family_map::{BUCKETS, Place, place};

const CLIENTS: u64 = 4;
pub(crate) const OPS: usize = 40;

/// An object in a client's cache.
#[derive(Clone, Debug)]
struct Kept {
    place: Place,
    version: u64,
    as_of: Seq,
    config: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Write {
        precondition: Precondition,
        op: Op,
        inline: Bytes,
    },
    Lookup,
    List {
        /// Where it goes on,
        from: Place,
        after: String,
        found: Vec<(String, u64)>,
    },
    Cached {
        kept: usize,
        /// The partition whose members are asked, and who is still to be asked.
        left: Option<(PartitionId, Vec<u8>)>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub(crate) request: RequestNo,
    pub(crate) place: Place,
    pub(crate) what: What,
    since: u64,
    attempt: u64,
    told: Option<u64>,
}

#[derive(Clone, Debug)]
struct Client {
    id: ClientId,
    next: u64,
    done: usize,
    map: usize,
    told: BTreeMap<PartitionId, u64>,
    kept: Vec<Kept>,
    current: Option<Current>,
}

/// What somebody was told, of the time from one moment to another.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) client: ClientId,
    pub(crate) current: Current,
    pub(crate) told: Told,
}

#[derive(Clone, Debug)]
pub(crate) enum Told {
    Done(Seq),
    Refused(ErrorCode),
    /// Of an object, its version.
    Version(Option<u64>),
    NoBucket,
    /// All of a bucket's keys.
    Keys(Vec<(String, u64)>),
}

/// A question that is under way.
#[derive(Clone, Debug)]
struct Asked {
    client: usize,
    node: u8,
    partition: PartitionId,
    request: RequestNo,
    /// Who wants a list says what it takes the partition for.
    bounds: Option<(Place, Option<Place>)>,
}

pub(crate) struct Clients {
    clients: Vec<Client>,
    attempts: u64,
    asked: BTreeMap<u64, Asked>,
    pub(crate) seen: Vec<Seen>,
}

impl Clients {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let clients = (0..CLIENTS).map(|_| Client {
            id: ClientId(rng.next()),
            next: 1,
            done: 0,
            map: 0,
            told: BTreeMap::new(),
            kept: Vec::new(),
            current: None,
        });
        Self {
            clients: clients.collect(),
            attempts: 0,
            asked: BTreeMap::new(),
            seen: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn finished(&self) -> bool {
        let mut clients = self.clients.iter();
        clients.all(|it| it.done >= OPS && it.current.is_none())
    }

    pub(crate) fn unfinished(&self) -> String {
        let clients = self.clients.iter();
        let all: Vec<_> = clients.map(|it| (it.done, it.map, &it.current)).collect();
        format!("{all:?}")
    }

    /// A replica is no more: what it was asked it will not answer.
    pub(crate) fn gone(&mut self, node: u8, partition: PartitionId) {
        self.asked
            .retain(|_, it| (it.node, it.partition) != (node, partition));
    }
}

impl World {
    fn random(&mut self, client: usize) -> (Place, What) {
        let rng = &mut self.rng;
        let held = &self.clients.clients[client];
        let (bucket, key) = place(rng);
        let write = |precondition, op, inline| What::Write {
            precondition,
            op,
            inline,
        };
        let first = held.done == 0;
        let bucket = if first {
            BUCKETS[client % 3].to_owned()
        } else {
            bucket
        };
        let at = (bucket.clone(), key.clone());
        if first || rng.one_in(60) {
            let op = Op::CreateBucket {
                bucket: bucket.clone(),
            };
            return (
                (bucket, String::new()),
                write(Precondition::None, op, Bytes::new()),
            );
        }
        let precondition = match rng.below(6) {
            0 => Precondition::Absent,
            1 => Precondition::Present,
            2 => {
                let known = held.kept.iter().rev().find(|it| it.place == at);
                Precondition::Version(Seq(known.map_or(1, |it| it.version)))
            }
            _ => Precondition::None,
        };
        let about = rng.below(44);
        if about >= 40 {
            let (bucket, to) = (bucket.clone(), key.clone());
            let fit = |it: &&Kept| it.place.0 == bucket && it.place.1 != to;
            let kept = held.kept.iter().rev().find(fit);
            let found = kept.map(|it| (it.place.1.clone(), it.version));
            if let Some((op, inline)) = found.and_then(|it| self.rename(bucket, to, it)) {
                return (at, write(precondition, op, inline));
            }
        }
        let rng = &mut self.rng;
        let held = &self.clients.clients[client];
        let what = match about {
            0 => {
                let op = Op::DeleteBucket {
                    bucket: bucket.clone(),
                };
                return (
                    (bucket, String::new()),
                    write(Precondition::None, op, Bytes::new()),
                );
            }
            1..=4 => {
                let bucket = bucket.clone();
                let op = match rng.below(4) {
                    0 | 1 => Op::Delete { bucket, key },
                    which => Op::DropVersion {
                        bucket,
                        key,
                        id: NULL_VERSION,
                        then: [Then::Nothing, Then::Same][which as usize - 2].clone(),
                        bypass: false,
                    },
                };
                write(precondition, op, Bytes::new())
            }
            5..=21 => {
                let tag = VersionTag {
                    null: true,
                    marker: rng.one_in(4),
                    ..VersionTag::default()
                };
                let (bucket, kept) = (bucket.clone(), rng.one_in(2));
                let len = match kept && tag.marker {
                    true => 0,
                    false => rng.below(150) as usize,
                };
                let inline = vec![rng.next() as u8; len];
                let manifest = Manifest::plain(inline.len() as u64, crc32(&inline), Body::Inline);
                let op = match kept {
                    false => Op::Put {
                        bucket,
                        key,
                        manifest,
                    },
                    true => Op::PutVersion {
                        bucket,
                        key,
                        tag,
                        current: true,
                        modified_ms: 0,
                        manifest,
                    },
                };
                write(precondition, op, Bytes::from(inline))
            }
            22..=29 => What::Lookup,
            30..=32 => What::List {
                from: (bucket.clone(), String::new()),
                after: String::new(),
                found: Vec::new(),
            },
            _ if held.kept.is_empty() => What::Lookup,
            _ => {
                let back = rng.below(4.min(held.kept.len() as u64)) as usize;
                let kept = held.kept.len() - 1 - back;
                let place = held.kept[kept].place.clone();
                return (place, What::Cached { kept, left: None });
            }
        };
        (at, what)
    }

    /// A client's time has come: to ask, or to ask again.
    pub(crate) fn client_goes_on(&mut self, client: usize, attempt: u64) {
        let now = self.now;
        let held = &self.clients.clients[client];
        match &held.current {
            Some(current) if current.attempt != attempt => return,
            Some(_) => {
                if self.rng.one_in(2) {
                    self.newer_map(client);
                }
            }
            None if held.done >= OPS => return,
            None => {
                let (place, what) = self.random(client);
                let held = &mut self.clients.clients[client];
                let request = RequestNo(held.next);
                held.next += 1;
                held.current = Some(Current {
                    request,
                    place,
                    what,
                    since: now,
                    attempt: 0,
                    told: None,
                });
            }
        }
        self.clients.attempts += 1;
        let attempt = self.clients.attempts;
        let held = &mut self.clients.clients[client];
        let Some(current) = &mut held.current else {
            return;
        };
        current.attempt = attempt;
        let at = match &current.what {
            What::List { from, .. } => from.clone(),
            _ => current.place.clone(),
        };
        let map = &self.maps[held.map];
        let part = map.at(&at).clone();
        let bounds = (part.from.clone(), map.end(part.id));
        if matches!(current.what, What::Cached { .. }) {
            return self.ask_witness(client, attempt, part.id, &part.chain.clone());
        }
        let nth = self.rng.below(part.chain.len() as u64) as usize;
        let Some((node, term)) = self.find_head(client, part.id, node_of(part.chain[nth])) else {
            let delay = 500 * MICRO + self.rng.below(5 * MILLI);
            return self.at(delay, Happening::Client { client, attempt });
        };
        let held = &mut self.clients.clients[client];
        let Some(current) = &mut held.current else {
            return;
        };
        let event = match &current.what {
            What::Write {
                precondition,
                op,
                inline,
            } => {
                let retry = current.told.map(Seq);
                let told = held.told.get(&part.id).copied().unwrap_or_default();
                current.told.get_or_insert(told);
                Event::Propose {
                    reply_to: attempt,
                    term,
                    client: held.id,
                    request: current.request,
                    retry,
                    precondition: *precondition,
                    op: op.clone(),
                    inline: inline.clone(),
                    wall_ms: now / MILLI,
                }
            }
            What::List { after, .. } => {
                let ask = Ask::List(ListParams {
                    bucket: at.0.clone(),
                    after: after.clone(),
                    max: 1 + self.rng.below(3) as u32,
                    ..ListParams::default()
                });
                let reply_to = attempt;
                Event::Ask { reply_to, ask }
            }
            What::Lookup | What::Cached { .. } => {
                let (bucket, key) = at;
                let id = None;
                let (reply_to, ask) = (attempt, Ask::Lookup { bucket, key, id });
                Event::Ask { reply_to, ask }
            }
        };
        let request = self.clients.clients[client].next - 1;
        let lists = matches!(
            &event,
            Event::Ask {
                ask: Ask::List(_),
                ..
            }
        );
        let asked = Asked {
            client,
            node,
            partition: part.id,
            request: RequestNo(request),
            bounds: lists.then_some(bounds),
        };
        self.clients.asked.insert(attempt, asked);
        let lies = self.plan.jitter && !self.plan.forgetful && self.rng.one_in(20);
        let long = if lies { 200 * MILLI } else { 50 * MICRO };
        let delay = 10 * MICRO + self.rng.below(long);
        self.tell_later(delay, node, part.id, event);
        let patience = 2 * MILLI + self.rng.below(40 * MILLI);
        self.at(patience, Happening::Client { client, attempt });
    }

    /// Whether a list is asked for by the map that the node has: if not, its driver sends the client on.
    pub(crate) fn sends_on(&mut self, node: u8, partition: PartitionId, event: &Event) -> bool {
        let Event::Ask { reply_to, .. } = event else {
            return false;
        };
        let asked = self.clients.asked.get(reply_to);
        let Some((from, end)) = asked.and_then(|it| it.bounds.as_ref()) else {
            return false;
        };
        let map = self.map_of(node);
        let same = map.find(partition).is_some_and(|it| it.from == *from);
        if same && map.end(partition) == *end {
            return false;
        }
        let (code, detail) = (ErrorCode::Moved, String::new());
        self.answered(node, partition, *reply_to, Err(WireError { code, detail }));
        true
    }

    fn newer_map(&mut self, client: usize) {
        let newest = self.maps.len() - 1;
        let held = &mut self.clients.clients[client];
        let more = (newest - held.map) as u64;
        held.map = match self.rng.one_in(2) {
            true => newest,
            false => held.map + self.rng.below(more + 1) as usize,
        };
    }

    fn list_anew(&mut self, client: usize) {
        let now = self.now;
        let current = &mut self.clients.clients[client].current;
        if let Some(current) = current
            && let What::List { from, after, found } = &mut current.what
        {
            *from = (current.place.0.clone(), String::new());
            after.clear();
            found.clear();
            current.since = now;
        }
    }

    /// Whom somebody of the chain takes for the head.
    fn find_head(
        &mut self,
        client: usize,
        partition: PartitionId,
        any: u8,
    ) -> Option<(u8, ashlar_layout::ids::Term)> {
        let ask = |node: u8| {
            let held = self.nodes.get(usize::from(node)).filter(|it| !it.paused)?;
            let it = held.replicas.get(&partition)?;
            Some(it.replica.view(held.clock(self.now)))
        };
        let (mut view, mut asked) = (ask(any)?, any);
        if !view.serving && view.term.0 != 0 {
            asked = node_of(view.term.head());
            view = ask(asked)?;
        }
        let told = &mut self.clients.clients[client].told;
        let told = told.entry(partition).or_default();
        *told = view.committed.0.max(*told);
        view.serving.then_some((asked, view.term))
    }

    /// The answer to what is still being asked.
    fn take_current(&mut self, attempt: u64) -> Option<(usize, Asked, Current)> {
        let asked = self.clients.asked.remove(&attempt);
        let asked = asked.expect("one answer for each question");
        let held = &mut self.clients.clients[asked.client];
        let mine = |it: &mut Current| it.request == asked.request && it.attempt == attempt;
        let current = held.current.take_if(mine)?;
        Some((asked.client, asked, current))
    }

    fn put_off(&mut self, client: usize, current: Current, code: ErrorCode) {
        let attempt = current.attempt;
        self.clients.clients[client].current = Some(current);
        if code == ErrorCode::Moved {
            self.newer_map(client);
            self.list_anew(client);
            self.count("moved");
        } else {
            self.count("put off");
        }
        let delay = MILLI + self.rng.below(4 * MILLI);
        self.at(delay, Happening::Client { client, attempt });
    }

    fn finish(&mut self, client: usize, current: Current, told: Told) {
        let (from, to) = (current.since, self.now);
        let held = &mut self.clients.clients[client];
        held.done += 1;
        let seen = Seen {
            from,
            to,
            client: held.id,
            current,
            told,
        };
        self.clients.seen.push(seen);
        let delay = self.rng.below(8 * MILLI);
        self.at(delay, Happening::Client { client, attempt: 0 });
    }

    pub(crate) fn replied(&mut self, partition: PartitionId, reply_to: u64, reply: Reply) {
        let asked = self.clients.asked.get(&reply_to).cloned();
        if let (Some(asked), Reply::Committed { seq, .. }) = (asked, &reply) {
            let known = self.committed.get(&partition);
            let newest = known.and_then(|it| it.last_key_value()).map(|it| *it.0);
            let inherited = known
                .and_then(|it| it.first_key_value())
                .is_none_or(|it| it.0 > seq);
            assert!(
                inherited || newest >= Some(*seq),
                "acknowledged, not committed"
            );
            // Another attempt of the same request may have been given up: it is done all the same.
            let held = &mut self.clients.clients[asked.client];
            let told = held.told.entry(partition).or_default();
            *told = seq.0.max(*told);
        }
        let Some((client, _, current)) = self.take_current(reply_to) else {
            return;
        };
        let told = match reply {
            Reply::Committed { seq, .. } => {
                let renamed = renames(&current.what);
                self.count(if renamed { "renamed" } else { "committed" });
                Told::Done(seq)
            }
            Reply::Error(WireError { code, .. }) => match code {
                ErrorCode::OutcomeUnknown => {
                    assert!(self.plan.forgetful, "nothing is forgotten: {current:?}");
                    self.count("unknown");
                    Told::Refused(code)
                }
                ErrorCode::PartitionUnavailable
                | ErrorCode::NotServing
                | ErrorCode::NotHead
                | ErrorCode::Moved
                | ErrorCode::Busy => return self.put_off(client, current, code),
                _ => {
                    let apart = code == ErrorCode::Apart;
                    self.count(if apart { "apart" } else { "refused" });
                    Told::Refused(code)
                }
            },
            other => panic!("not an answer to a proposal: {other:?}"),
        };
        self.finish(client, current, told);
    }

    pub(crate) fn answered(
        &mut self,
        node: u8,
        partition: PartitionId,
        reply_to: u64,
        result: Result<Answer, WireError>,
    ) {
        if let Ok(Answer::Found {
            meta,
            payload,
            place,
            ..
        }) = &result
        {
            let inline = place.map(|place| {
                let bytes = self.nodes[usize::from(node)]
                    .device
                    .read(place.at, place.len);
                let bytes = bytes.unwrap_or_else(|| panic!("{partition}: {place:?} was freed"));
                let entry = Entry::decode(&bytes).expect("it is whole");
                let named = (entry.header.seq, entry.header.term);
                assert_eq!(named, (place.seq, place.term), "{partition}: another entry");
                crc32(entry.inline)
            });
            assert_eq!(inline.unwrap_or(crc32(payload)), meta.manifest.crc);
        }
        let Some((client, _, mut current)) = self.take_current(reply_to) else {
            return;
        };
        let told = match result {
            Ok(Answer::Found { meta, .. }) if meta.tag.is_some_and(|tag| tag.marker) => {
                self.count("markers");
                Told::Version(None)
            }
            Ok(Answer::Found {
                meta,
                as_of,
                config,
                ..
            }) => {
                self.count("found");
                let version = meta.version.0;
                self.clients.clients[client].kept.push(Kept {
                    place: current.place.clone(),
                    version,
                    as_of,
                    config,
                });
                Told::Version(Some(version))
            }
            Ok(Answer::Page(page)) => match self.page(client, &mut current, page) {
                Some(told) => told,
                None => {
                    let attempt = current.attempt;
                    self.clients.clients[client].current = Some(current);
                    let delay = self.rng.below(2 * MILLI);
                    return self.at(delay, Happening::Client { client, attempt });
                }
            },
            Ok(other) => panic!("nobody asked for {other:?}"),
            Err(error) => match error.code {
                ErrorCode::NotFound => Told::Version(None),
                ErrorCode::NoSuchBucket => Told::NoBucket,
                ErrorCode::NotServing | ErrorCode::NotHead | ErrorCode::Moved | ErrorCode::Busy => {
                    return self.put_off(client, current, error.code);
                }
                _ => panic!("{partition}: {error:?}"),
            },
        };
        self.finish(client, current, told);
    }

    /// Takes a page: the whole list, if that was the last one.
    fn page(&mut self, client: usize, current: &mut Current, page: ListPage) -> Option<Told> {
        self.count("pages");
        let map = &self.maps[self.clients.clients[client].map];
        let What::List { from, after, found } = &mut current.what else {
            panic!("it wants no list")
        };
        let end = map.end(map.at(from).id);
        let bucket = current.place.0.clone();
        let inside = |key: &str| {
            let place = (bucket.clone(), key.to_owned());
            place >= *from && end.as_ref().is_none_or(|end| place < *end)
        };
        let before = |key: &str| (bucket.clone(), key.to_owned()) < *from;
        // By a newer map the partition may begin further in front.
        let whole = page
            .objects
            .iter()
            .all(|it| before(&it.key) || inside(&it.key));
        for object in page.objects.into_iter().filter(|it| inside(&it.key)) {
            found.push((object.key, object.version.0));
        }
        if let Some(next) = page.next.filter(|_| whole) {
            *after = next;
            return None;
        }
        match end {
            Some(end) if end.0 == bucket => {
                *from = end;
                None
            }
            _ => {
                self.count("lists");
                Some(Told::Keys(found.clone()))
            }
        }
    }

    /// A cached read begins, or goes on with the next witness.
    fn ask_witness(
        &mut self,
        client: usize,
        attempt: u64,
        partition: PartitionId,
        chain: &[ashlar_layout::ids::DeviceNo],
    ) {
        let mut members: Vec<u8> = chain.iter().map(|it| node_of(*it)).collect();
        let without = self.rng.below(members.len() as u64) as usize;
        members.remove(without);
        let held = &mut self.clients.clients[client];
        let Some(current) = held.current.as_mut() else {
            return;
        };
        let What::Cached { kept, left } = &mut current.what else {
            return;
        };
        let kept = held.kept[*kept].clone();
        let (partition, left) = left.get_or_insert((partition, members));
        let Some(node) = left.pop() else {
            let current = held.current.take().expect("it is there");
            self.count("confirmed by witnesses");
            return self.finish(client, current, Told::Version(Some(kept.version)));
        };
        let asked = &self.nodes[usize::from(node)];
        let it = asked.replicas.get(partition).filter(|_| !asked.paused);
        let slot = slot_of(&kept.place.0, &kept.place.1);
        let answer = it.map(|it| it.replica.witness(slot));
        let same = answer
            .is_some_and(|(config, highest)| config == Some(kept.config) && highest <= kept.as_of);
        if !same {
            // It is asked of the head.
            current.what = What::Lookup;
            self.count("not confirmed by witnesses");
        }
        let most = if self.rng.one_in(5) {
            20 * MILLI
        } else {
            200 * MICRO
        };
        let delay = self.rng.below(most);
        self.at(delay, Happening::Client { client, attempt });
    }
}

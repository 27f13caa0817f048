//! A cluster for tests: real sockets and real frames, shards and objects in memory; each node can
//! be told to misbehave, to die and to come back.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ashlar_cluster_map::{Class, ClusterMap, Core, Device, DomainLevel, Domains, Node, solve};
use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameHeader, Haste, decode_control};
use ashlar_layout::ids::{
    ClientId, ClusterId, DeviceId, DeviceNo, NodeId, PartitionId, RequestNo, Seq, ShardId, Term,
};
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{
    BucketMeta, ChainView, DeviceStatus, ErrorCode, FindingKind, ListEntry, ListPage, NodeStatus,
    ObjectMeta, Reply, Request, VersionPage, WireError,
};
use ashlar_layout::slot::slot_of;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::fake_answers::respond;

/// How a node behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Does what is asked, and answers after this time.
    Slow(Duration),
    /// Never answers.
    Mute,
    /// Answers with bytes that are no frame.
    Garbage,
    /// Answers with half of the frame, and closes.
    Truncated,
    /// Announces a payload of more than is allowed.
    Oversized,
    /// The header does not match its CRC.
    HeaderCrc,
    /// The control part does not match its CRC.
    ControlCrc,
    /// The control part is no reply.
    ControlGarbage,
    /// The payload does not match its CRC.
    PayloadCrc,
    /// Closes the connection instead of answering.
    Closes,
    /// Answers a request that was not made.
    OtherRequest,
    /// Answers with a request.
    NoReply,
    /// Answers everything with `Done`.
    WrongKind,
    /// Has no room.
    Full,
}

impl Mood {
    pub(crate) const HOSTILE: [Mood; 12] = [
        Mood::Mute,
        Mood::Garbage,
        Mood::Truncated,
        Mood::Oversized,
        Mood::HeaderCrc,
        Mood::ControlCrc,
        Mood::ControlGarbage,
        Mood::PayloadCrc,
        Mood::Closes,
        Mood::OtherRequest,
        Mood::NoReply,
        Mood::WrongKind,
    ];
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) shards: BTreeMap<(DeviceNo, ShardId), Bytes>,
    pub(crate) objects: BTreeMap<(String, String), (ObjectMeta, Bytes)>,
    pub(crate) buckets: BTreeMap<String, u64>,
    committed: HashMap<(ClientId, RequestNo), Seq>,
    pub(crate) seq: u64,
    /// Versions that new ones have taken the place of.
    pub(crate) versions: Vec<(ObjectMeta, Bytes)>,
    /// Whether the current object is to be replaced when it is next made a version: somebody is faster.
    pub(crate) overtakes: bool,
    pub(crate) moods: HashMap<NodeId, Mood>,
    pub(crate) reports: Vec<(DeviceNo, ShardId, FindingKind)>,
    pub(crate) map: Option<ClusterMap>,
    /// Bytes of each read from a client's socket, on node 1.
    pub(crate) reads: Vec<usize>,
    /// Requests handled, by node.
    pub(crate) requests: HashMap<NodeId, u64>,
    /// The reign that lasts, in all partitions; nobody serves in that of a device that is not there.
    pub(crate) term: Term,
    /// The chain's composition: of the map's devices.
    pub(crate) config: u64,
    /// What was asked, and whether it may wait.
    pub(crate) hastes: Vec<(Request, Haste)>,
    /// The highest entry of each slot.
    slots: HashMap<(PartitionId, u32), Seq>,
    /// Look-ups, and witnesses asked.
    pub(crate) lookups: u64,
    pub(crate) witnesses: u64,
    /// Whether a stale caller is only told to fetch the map.
    pub(crate) keeps_map: bool,
}

pub(crate) struct Cluster {
    pub(crate) map: ClusterMap,
    store: Arc<Mutex<Store>>,
    alive: HashMap<NodeId, watch::Sender<bool>>,
}

impl Cluster {
    /// Six nodes of one device each, class 4+2.
    pub(crate) async fn start() -> Cluster {
        let mut listeners = Vec::new();
        for _ in 0..6 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let mut map = ClusterMap::bare(
            ClusterId([9; 16]),
            Class { k: 4, m: 2 },
            256 * 1024,
            DomainLevel::Host,
        );
        for (i, listener) in (1u32..).zip(&listeners) {
            let address = listener.local_addr().unwrap().to_string();
            let domains = Domains::default();
            map.nodes.push(Node {
                id: NodeId(i),
                domains,
                cores: vec![Core { address }],
            });
            map.devices.push(Device {
                no: DeviceNo(i),
                id: DeviceId([i as u8; 16]),
                node: NodeId(i),
                core: 0,
                size: 1 << 30,
            });
        }
        solve(&mut map, 7).unwrap();
        let store = Arc::new(Mutex::new(Store {
            map: Some(map.clone()),
            term: Term::new(1, map.partitions[0].chain.devices[0]),
            config: 1,
            ..Store::default()
        }));
        let mut cluster = Cluster {
            map,
            store,
            alive: HashMap::new(),
        };
        for (i, listener) in (1u32..).zip(listeners) {
            cluster.serve(NodeId(i), listener);
        }
        cluster
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    pub(crate) fn head(&self) -> NodeId {
        let head = self.map.partitions[0].chain.devices[0];
        self.map.device(head).unwrap().node
    }

    /// Another member takes office.
    pub(crate) fn elect(&self, node: NodeId) {
        let mut store = self.store();
        store.term = Term::new(store.term.round() + 1, DeviceNo(node.0));
    }

    /// The chain's other members.
    pub(crate) fn followers(&self) -> Vec<NodeId> {
        let members = &self.map.partitions[0].chain.devices;
        members[1..].iter().map(|d| NodeId(d.0)).collect()
    }

    /// Nodes that are not the head.
    pub(crate) fn others(&self) -> Vec<NodeId> {
        self.map
            .nodes
            .iter()
            .map(|n| n.id)
            .filter(|n| *n != self.head())
            .collect()
    }

    fn serve(&mut self, node: NodeId, listener: TcpListener) {
        let (alive, watch) = watch::channel(true);
        self.alive.insert(node, alive);
        let store = self.store.clone();
        tokio::spawn(async move {
            let mut dead = watch.clone();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = dead.changed() => return,
                };
                let Ok((stream, _)) = accepted else { return };
                let (store, mut dead) = (store.clone(), watch.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = connection(node, stream, store) => {}
                        _ = dead.changed() => {}
                    }
                });
            }
        });
    }

    /// The node's process ends: connections break, new ones are refused.
    pub(crate) async fn kill(&mut self, node: NodeId) {
        self.alive.remove(&node).unwrap().send(false).ok();
        let address = self.address(node);
        while TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn revive(&mut self, node: NodeId) {
        let listener = TcpListener::bind(self.address(node)).await.unwrap();
        self.serve(node, listener);
    }

    fn address(&self, node: NodeId) -> String {
        self.map.node(node).unwrap().cores[0].address.clone()
    }

    pub(crate) fn mood(&self, node: NodeId, mood: Mood) {
        self.store().moods.insert(node, mood);
    }
}

async fn connection(node: NodeId, mut stream: TcpStream, store: Arc<Mutex<Store>>) {
    stream.set_nodelay(true).unwrap();
    let mut held: Vec<u8> = Vec::new();
    let mut hello = false;
    loop {
        let frame = loop {
            if let Some(head) = held.first_chunk::<FRAME_HEADER_LEN>() {
                let header = FrameHeader::decode(head).expect("the client sends good headers");
                if held.len() >= header.frame_len() {
                    break header;
                }
            }
            let mut some = vec![0; 1 << 20];
            match stream.read(&mut some).await {
                Ok(n) if n > 0 => {
                    if node == NodeId(1) {
                        store.lock().unwrap().reads.push(n);
                    }
                    held.extend_from_slice(&some[..n]);
                }
                _ => return,
            }
        };
        let rest = held.split_off(frame.frame_len());
        let bytes = std::mem::replace(&mut held, rest);
        let control_end = FRAME_HEADER_LEN + frame.control_len as usize;
        let (control, payload) = (&bytes[FRAME_HEADER_LEN..control_end], &bytes[control_end..]);
        frame
            .verify_control(control)
            .expect("the client sends good control parts");
        frame
            .verify_payload(payload)
            .expect("the client sends good payloads");
        let request: Request = decode_control(control).expect("the client sends requests");
        assert!(
            hello || matches!(request, Request::Hello { .. }),
            "Hello comes first"
        );
        let is_hello = !hello;
        hello = true;
        let (reply, out, mood) = {
            let mut store = store.lock().unwrap();
            *store.requests.entry(node).or_default() += 1;
            store.hastes.push((request.clone(), frame.haste()));
            let mood = store.moods.get(&node).copied().unwrap_or(Mood::Well);
            let (reply, out) =
                store.answer(node, &frame, request, Bytes::copy_from_slice(payload), mood);
            (reply, out, if is_hello { Mood::Well } else { mood })
        };
        if !respond(&mut stream, frame.request, reply, out, mood).await {
            return;
        }
    }
}

pub(crate) fn refuse(code: ErrorCode, detail: &str) -> (Reply, Bytes) {
    (
        Reply::Error(WireError {
            code,
            detail: detail.to_owned(),
        }),
        Bytes::new(),
    )
}

impl Store {
    fn answer(
        &mut self,
        node: NodeId,
        frame: &FrameHeader,
        request: Request,
        payload: Bytes,
        mood: Mood,
    ) -> (Reply, Bytes) {
        let map = self.map.clone().unwrap();
        let none = Bytes::new();
        let epoch_matters = !matches!(
            request,
            Request::Hello { .. } | Request::GetMap | Request::Status
        );
        if epoch_matters && frame.epoch != map.epoch {
            let (reply, none) = refuse(ErrorCode::StaleEpoch, "the map is newer");
            let json = if self.keeps_map {
                none
            } else {
                map.to_json().into()
            };
            return (reply, json);
        }
        let is_head = DeviceNo(node.0) == self.term.head();
        let for_head = match &request {
            Request::Propose { term, .. } => !is_head || *term != self.term,
            Request::Lookup { .. }
            | Request::List { .. }
            | Request::ListVersions { .. }
            | Request::ListBuckets { .. } => !is_head,
            _ => false,
        };
        if for_head {
            return refuse(ErrorCode::NotHead, "another one is the head");
        }
        match request {
            Request::Hello { cluster, .. } if cluster != map.cluster => {
                refuse(ErrorCode::WrongCluster, "this node is of another cluster")
            }
            Request::Hello { .. } => (
                Reply::Hello {
                    node,
                    epoch: map.epoch,
                },
                none,
            ),
            Request::GetMap => (Reply::Map, map.to_json().into()),
            Request::ShardWrite { device, shard } => {
                if mood == Mood::Full {
                    return refuse(ErrorCode::DeviceFull, "no extent is free");
                }
                self.shards.insert((device, shard), payload);
                (Reply::Done, none)
            }
            Request::ShardRead {
                device,
                shard,
                offset,
                len,
            } => {
                let Some(bytes) = self.shards.get(&(device, shard)) else {
                    return refuse(ErrorCode::NotFound, "no such shard");
                };
                let whole = len == u32::MAX;
                let end = if whole {
                    bytes.len()
                } else {
                    (offset + len) as usize
                };
                let reply = Reply::Shard {
                    shard_len: bytes.len() as u32,
                    shard_crc: crc32(bytes),
                };
                (reply, bytes.slice(offset as usize..end))
            }
            Request::ShardDelete { device, shard } => {
                self.shards.remove(&(device, shard));
                (Reply::Done, none)
            }
            Request::ReportShard {
                device,
                shard,
                fault,
            } => {
                self.reports.push((device, shard, fault));
                (Reply::Done, none)
            }
            Request::Chain { partition } => {
                let chain = map.partitions.iter().find(|p| p.id == partition);
                let view = ChainView {
                    term: self.term,
                    serving: is_head,
                    committed: Seq(self.seq),
                    config: self.config,
                    members: chain.map_or(vec![], |p| p.chain.devices.clone()),
                };
                (Reply::Chain(view), none)
            }
            Request::Witness { partition, slot } => {
                self.witnesses += 1;
                let highest = self.slots.get(&(partition, slot)).copied();
                let reply = Reply::Witness {
                    config: Some(self.config),
                    highest: highest.unwrap_or_default(),
                };
                (reply, none)
            }
            Request::Propose {
                partition,
                client,
                request,
                precondition,
                op,
                ..
            } => {
                let slot = match &op {
                    Op::Put { bucket, key, .. } | Op::Delete { bucket, key } => {
                        Some(slot_of(bucket, key))
                    }
                    _ => None,
                };
                let answer = self.propose((client, request), precondition, op, payload);
                if let (Reply::Committed { seq, .. }, Some(slot)) = (&answer.0, slot) {
                    self.slots.insert((partition, slot), *seq);
                }
                answer
            }
            Request::Lookup {
                bucket,
                key,
                payload,
                ..
            } => {
                self.lookups += 1;
                if !self.buckets.contains_key(&bucket) {
                    return refuse(ErrorCode::NoSuchBucket, "no such bucket");
                }
                match self.objects.get(&(bucket, key)) {
                    Some((meta, inline)) => {
                        let inline = if payload { inline.clone() } else { none };
                        let found = Reply::Found {
                            meta: meta.clone(),
                            as_of: Seq(self.seq),
                            config: self.config,
                        };
                        (found, inline)
                    }
                    None => refuse(ErrorCode::NotFound, "no such object"),
                }
            }
            Request::List {
                bucket,
                prefix,
                delimiter,
                after,
                max,
                ..
            } => self.list(&bucket, &prefix, &delimiter, &after, max as usize),
            Request::ListVersions {
                bucket, after, max, ..
            } => match self.list(&bucket, "", "", &after, max as usize) {
                (Reply::Page(page), none) => {
                    let page = VersionPage {
                        next: page.next.map(|next| (next, None)),
                        versions: page.objects,
                        prefixes: page.prefixes,
                    };
                    (Reply::Versions(page), none)
                }
                other => other,
            },
            Request::Digest { .. } | Request::Paces => {
                refuse(ErrorCode::BadFrame, "as an older one")
            }
            Request::ListBuckets { after, max, .. } => {
                let mut names = self.buckets.iter().filter(|(name, _)| **name > after);
                let page = names.by_ref().take(max as usize);
                let page = page.map(|(name, at)| BucketMeta {
                    name: name.clone(),
                    created_ms: *at,
                });
                let buckets = page.collect();
                let more = names.next().is_some();
                (Reply::Buckets { buckets, more }, none)
            }
            Request::Status => {
                let full = mood == Mood::Full;
                let state = if full { "full" } else { "serving" };
                let device = DeviceStatus {
                    device: DeviceNo(node.0),
                    id: DeviceId::default(),
                    state: state.to_owned(),
                    bytes_total: 0,
                    bytes_used: 0,
                    shards: 0,
                    findings: vec![],
                };
                let status = NodeStatus {
                    node,
                    epoch: map.epoch,
                    uptime_ms: 1,
                    devices: vec![device],
                    replicas: vec![],
                };
                (Reply::Status(status), none)
            }
        }
    }

    fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: &str,
        after: &str,
        max: usize,
    ) -> (Reply, Bytes) {
        let mut page = ListPage::default();
        let mut last = after.to_owned();
        for ((b, key), (meta, _)) in &self.objects {
            let Some(rest) = key.strip_prefix(prefix).filter(|_| b == bucket) else {
                continue;
            };
            let rolled = (!delimiter.is_empty())
                .then(|| rest.find(delimiter))
                .flatten()
                .map(|at| format!("{prefix}{}", &rest[..at + delimiter.len()]));
            let name = rolled.clone().unwrap_or_else(|| key.clone());
            if name <= last {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == max {
                page.next = Some(last);
                break;
            }
            last = name.clone();
            match rolled {
                Some(prefix) => page.prefixes.push(prefix),
                None => page.objects.push(ListEntry {
                    key: name,
                    size: meta.manifest.size,
                    crc: meta.manifest.crc,
                    etag: meta.manifest.etag,
                    version: meta.version,
                    modified_ms: 0,
                    tag: None,
                }),
            }
        }
        (Reply::Page(page), Bytes::new())
    }

    fn propose(
        &mut self,
        id: (ClientId, RequestNo),
        precondition: Precondition,
        op: Op,
        payload: Bytes,
    ) -> (Reply, Bytes) {
        let none = Bytes::new();
        if let Some(seq) = self.committed.get(&id) {
            return (
                Reply::Committed {
                    seq: *seq,
                    displaced: None,
                },
                none,
            );
        }
        let bucket = match &op {
            Op::Put { bucket, .. } | Op::Delete { bucket, .. } => Some(bucket),
            _ => None,
        };
        if bucket.is_some_and(|b| !self.buckets.contains_key(b)) {
            return refuse(ErrorCode::NoSuchBucket, "no such bucket");
        }
        let precondition = match &op {
            Op::Relocate { seen, .. } => Precondition::Version(*seen),
            _ => precondition,
        };
        let seq = Seq(self.seq + 1);
        let displaced = match op {
            Op::TermStart
            | Op::Chain { .. }
            | Op::Split { .. }
            | Op::Close { .. }
            | Op::LockVersion { .. }
            | Op::Rename { .. }
            | Op::Relocate { tag: Some(_), .. } => {
                return refuse(ErrorCode::BadRequest, "not for clients");
            }
            Op::CreateBucket { bucket } => {
                if self.buckets.insert(bucket, seq.0).is_some() {
                    return refuse(ErrorCode::BucketExists, "there already");
                }
                None
            }
            Op::DeleteBucket { bucket } => {
                if self.objects.keys().any(|(b, _)| *b == bucket) {
                    return refuse(ErrorCode::BucketNotEmpty, "not empty");
                }
                if self.buckets.remove(&bucket).is_none() {
                    return refuse(ErrorCode::NoSuchBucket, "no such bucket");
                }
                None
            }
            Op::Put {
                bucket,
                key,
                manifest,
            }
            | Op::Relocate {
                bucket,
                key,
                manifest,
                ..
            } => match self.make((bucket, key), precondition, None, (manifest, payload)) {
                Ok(displaced) => displaced,
                Err(code) => return refuse(code, "not now"),
            },
            Op::PutVersion {
                bucket,
                key,
                tag,
                manifest,
                ..
            } => match self.make((bucket, key), precondition, Some(tag), (manifest, payload)) {
                Ok(displaced) => displaced,
                Err(code) => return refuse(code, "not now"),
            },
            Op::DropVersion { bucket, key, .. } => {
                match self.drop_current(&(bucket, key), precondition) {
                    Ok(displaced) => displaced,
                    Err(code) => return refuse(code, "not now"),
                }
            }
            Op::Delete { bucket, key } => self
                .objects
                .remove(&(bucket, key))
                .map(|(meta, _)| meta.manifest),
        };
        self.seq += 1;
        self.committed.insert(id, seq);
        (Reply::Committed { seq, displaced }, none)
    }
}

//! What clients ask of a core.

use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{FrameHeader, Haste, Opcode, decode_control};
use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId, ShardId};
use ashlar_layout::limits::{CONNECTION_REQUESTS_MAX, INLINE_MAX, SHARD_SIZE_MAX};
use ashlar_layout::manifest::{Body, Op, Then};
use ashlar_layout::message::{
    ChainMessage, ErrorCode, FindingKind, NodeStatus, Reply, Request, WireError,
};
use ashlar_layout::record::header_len;
use ashlar_layout::time::Instant;
use ashlar_node_engine::api::{self, Memory};
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::{Buf, Chunk, ConnId, Driver};
use bytes::Bytes;

use crate::core::{Conn, Core, Message, Pending, Todo, replica_of};
use crate::holding::Meter;
use crate::incoming::Sink;
use crate::lookups::Reading;
use crate::outgoing::{self, Payload};
use crate::words::say;

/// Bytes that may wait to be sent on a connection before it is read no further.
const SEND_QUEUE_MAX: usize = 16 * 1024 * 1024;
/// The part of the pool that must be free before a shard's payload is taken in: one in so many,
const WRITE_SPARE: usize = 4;
/// and before a shard is read.
const READ_SPARE: usize = 8;

impl Core {
    /// A frame's head is in: decides where its payload goes, or handles it if it has none.
    pub(crate) fn head(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        control: &[u8],
        now: Instant,
        io: &mut impl Driver,
    ) {
        let message = match header.opcode {
            Opcode::Request => decode_control::<Request>(control).map(Message::Request),
            Opcode::Reply => decode_control::<Reply>(control).map(Message::Reply),
            Opcode::Chain => decode_control::<ChainMessage>(control).map(Message::Chain),
            Opcode::Control => {
                // The control plane has ports of its own.
                let what = "this is a data core: the control plane listens elsewhere";
                return self.bad_frame(conn, what, now, io);
            }
        };
        let Some(state) = self.conns.get_mut(&conn) else {
            return;
        };
        if header.opcode == Opcode::Request {
            state.under_way += 1;
            if state.under_way >= CONNECTION_REQUESTS_MAX || io.queued(conn) > SEND_QUEUE_MAX {
                state.paused = true;
                io.pause(conn);
            }
        }
        if let Ok(Message::Chain(chain)) = &message
            && !self.is_node(conn)
        {
            say!(
                "a chain message for partition {} at epoch {} was refused: its sender is no node of ours",
                chain.partition,
                header.epoch
            );
            io.abort(conn);
            return self.forget_conn(conn, now);
        }
        let sink = match message {
            Ok(message) => match self.sink(conn, &header, &message) {
                Ok(sink) => {
                    if header.payload_len == 0 {
                        self.message(conn, &header, message, Bytes::new(), now, io);
                        return;
                    }
                    if let Some(state) = self.conns.get_mut(&conn) {
                        state.head = Some((header, message));
                    }
                    sink
                }
                Err(refusal) => {
                    self.refuse(conn, &header, refusal, io);
                    Sink::Discard
                }
            },
            Err(e) => {
                let error = WireError {
                    code: ErrorCode::BadFrame,
                    detail: e.to_string(),
                };
                self.refuse(conn, &header, error, io);
                Sink::Discard
            }
        };
        if let Some(state) = self.conns.get_mut(&conn)
            && header.payload_len > 0
        {
            state.incoming.expect(sink);
        }
    }

    fn refuse(
        &mut self,
        conn: ConnId,
        header: &FrameHeader,
        error: WireError,
        io: &mut impl Driver,
    ) {
        if header.opcode == Opcode::Request {
            // Whoever works with an older map gets ours with the refusal.
            let older = error.code == ErrorCode::StaleEpoch && header.epoch < self.maps.map.epoch;
            let payload = if older {
                Payload::Bytes(self.maps.json.clone())
            } else {
                Payload::None
            };
            self.answer(io, conn, header.request, &Reply::Error(error), payload);
        }
    }

    /// Whether a request may be served at all, and where its payload is to go.
    fn sink(
        &mut self,
        conn: ConnId,
        header: &FrameHeader,
        message: &Message,
    ) -> Result<Sink, WireError> {
        let refuse = |code, detail: String| Err(WireError { code, detail });
        let Some(state) = self.conns.get(&conn) else {
            return Ok(Sink::Discard);
        };
        let request = match message {
            Message::Reply(_) if state.peer_out.is_some() => return Ok(Sink::Discard),
            Message::Reply(_) => {
                return refuse(
                    ErrorCode::BadFrame,
                    "a reply came where none was asked for".into(),
                );
            }
            // One of us may work with a map in which the chain is another: nothing of it is taken in.
            Message::Chain(chain)
                if self.genuine(conn, chain).is_none() && self.called(conn, chain).is_none() =>
            {
                return Ok(Sink::Discard);
            }
            Message::Chain(_) => return Ok(Sink::Bytes),
            Message::Request(request) => request,
        };
        let carries = matches!(
            request,
            Request::ShardWrite { .. } | Request::Propose { .. }
        );
        if header.payload_len > 0 && !carries {
            return refuse(
                ErrorCode::BadRequest,
                "this request takes no payload".into(),
            );
        }
        if matches!(request, Request::Hello { .. }) {
            return Ok(Sink::Discard);
        }
        if state.hello.is_none() {
            return refuse(
                ErrorCode::BadRequest,
                "the first request on a connection must be Hello".into(),
            );
        }
        let epoch = self.maps.map.epoch;
        let unversioned = matches!(
            request,
            Request::GetMap | Request::Status | Request::Paces | Request::Chain { .. }
        );
        // A caller with a newer map is served: what it names is here or it is not, and the logs of the chains
        // decide everything else. This node hears of that map from the control plane.
        if header.epoch < epoch && !unversioned {
            return refuse(
                ErrorCode::StaleEpoch,
                format!(
                    "the request is for map epoch {}, this node is at {epoch}",
                    header.epoch
                ),
            );
        }
        if self.draining() && !unversioned {
            return refuse(
                ErrorCode::NotServing,
                format!(
                    "node {} is stopping: ask again when it is back",
                    self.shared.node
                ),
            );
        }
        match request {
            Request::ShardWrite { device, shard } => self.shard_sink(*device, *shard, header),
            Request::Propose { .. } if header.payload_len > INLINE_MAX => refuse(
                ErrorCode::BadRequest,
                format!(
                    "an inline object has at most {INLINE_MAX} bytes, this one {}",
                    header.payload_len
                ),
            ),
            _ => Ok(Sink::Bytes),
        }
    }

    fn shard_sink(
        &mut self,
        device: DeviceNo,
        shard: ShardId,
        header: &FrameHeader,
    ) -> Result<Sink, WireError> {
        let len = header.payload_len;
        if len == 0 || len > SHARD_SIZE_MAX {
            return Err(WireError {
                code: ErrorCode::BadRequest,
                detail: format!("shard {shard} has {len} bytes; 1 to {SHARD_SIZE_MAX} are allowed"),
            });
        }
        let slot = self.serving_device(device)?;
        self.admit(WRITE_SPARE)?;
        let block = self.devices[slot].block_size();
        let room = header_len(len, block) as usize;
        let total = room + (len.next_multiple_of(block)) as usize;
        let Some(mut buf) = self.memory.alloc(total) else {
            return Err(WireError {
                code: ErrorCode::Busy,
                detail: format!(
                    "node {} has no buffer free: send again later",
                    self.shared.node
                ),
            });
        };
        buf[room + len as usize..total].fill(0);
        Ok(Sink::Buf(buf, room))
    }

    /// Whether the pool can bear more, so that the journal always finds room in it.
    fn admit(&self, spare: usize) -> Result<(), WireError> {
        let pool = &self.memory.0;
        if pool.available() >= pool.capacity() / spare {
            return Ok(());
        }
        Err(WireError {
            code: ErrorCode::Busy,
            detail: format!(
                "node {} has no buffers to spare: ask again later",
                self.shared.node
            ),
        })
    }

    /// The slot of a device that serves, or why it does not.
    fn serving_device(&self, device: DeviceNo) -> Result<usize, WireError> {
        let Some(slot) = self.devices.iter().position(|d| d.no == device) else {
            return Err(WireError {
                code: ErrorCode::NotHere,
                detail: format!(
                    "device {device} is not on this core of node {}",
                    self.shared.node
                ),
            });
        };
        if self.devices[slot].is_serving() {
            return Ok(slot);
        }
        Err(WireError {
            code: ErrorCode::NotServing,
            detail: format!(
                "device {device} does not serve now: {}",
                self.devices[slot].state()
            ),
        })
    }

    /// A shard's payload is in its buffer.
    pub(crate) fn shard_write(
        &mut self,
        conn: ConnId,
        header: &FrameHeader,
        message: Message,
        buf: Buf,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let Message::Request(Request::ShardWrite { device, shard }) = message else {
            return;
        };
        let slot = match self.serving_device(device) {
            Ok(slot) => slot,
            Err(error) => return self.refuse(conn, header, error, io),
        };
        let bytes = u64::from(header.payload_len);
        let meter = self.meter(slot, header.haste(), true, bytes, now);
        let op = self.ops.insert(Pending::Shard {
            conn,
            request: header.request,
            meter,
        });
        let event = api::Event::WriteShard {
            op,
            shard,
            buf,
            payload_len: header.payload_len,
            payload_crc: header.payload_crc,
        };
        self.metered(slot, meter, event, now);
    }

    /// A frame is in, whole.
    pub(crate) fn message(
        &mut self,
        conn: ConnId,
        header: &FrameHeader,
        message: Message,
        payload: Bytes,
        now: Instant,
        io: &mut impl Driver,
    ) {
        match message {
            Message::Request(request) => self.request(conn, header, request, payload, now, io),
            Message::Chain(message) => self.chain_message(conn, message, payload),
            Message::Reply(reply) => self.peer_reply(conn, &reply, now, io),
        }
    }

    fn request(
        &mut self,
        conn: ConnId,
        header: &FrameHeader,
        request: Request,
        payload: Bytes,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let number = header.request;
        let outcome = match request {
            Request::Hello {
                cluster,
                node,
                core,
            } => Some(self.hello(conn, cluster, (node, core), io)),
            Request::GetMap => {
                let map = Payload::Bytes(self.maps.json.clone());
                return self.answer(io, conn, number, &Reply::Map, map);
            }
            Request::ShardWrite { shard, .. } => Some(Err(WireError {
                code: ErrorCode::BadRequest,
                detail: format!("shard {shard} came without a payload"),
            })),
            Request::ShardRead {
                device,
                shard,
                offset,
                len,
            } => match self.admit(READ_SPARE) {
                Err(error) => Some(Err(error)),
                Ok(()) => self.device_op(
                    (device, header.haste(), true, now),
                    |meter| Pending::Read {
                        conn,
                        request: number,
                        meter,
                    },
                    |op| api::Event::ReadShard {
                        op,
                        shard,
                        offset,
                        len,
                    },
                ),
            },
            Request::ShardDelete { device, shard } => self.device_op(
                (device, header.haste(), false, now),
                |meter| Pending::Shard {
                    conn,
                    request: number,
                    meter,
                },
                |op| api::Event::DeleteShard { op, shard },
            ),
            Request::Propose {
                partition,
                term,
                client,
                request,
                retry,
                precondition,
                op,
            } => {
                let checked = check_op(&op, header, &payload);
                match checked.and_then(|()| self.replica(partition)) {
                    Ok(replica) => {
                        self.replicas[replica].requests += 1;
                        let reply_to = self.replicas[replica].ask(conn, number);
                        let event = ashlar_cluster_journal::Event::Propose {
                            reply_to,
                            term,
                            client,
                            request,
                            retry,
                            precondition,
                            op,
                            inline: payload,
                            wall_ms: io.wall_ms(),
                        };
                        self.todo.push_back(Todo::Replica { replica, event });
                        None
                    }
                    Err(error) => Some(Err(error)),
                }
            }
            Request::Lookup { partition, .. }
            | Request::List { partition, .. }
            | Request::ListVersions { partition, .. }
            | Request::ListBuckets { partition, .. } => match self.replica(partition) {
                Ok(replica) => {
                    self.replicas[replica].requests += 1;
                    let reading = Reading::new(conn, header, request);
                    return self.read_metadata(reading, replica, now, true, io);
                }
                Err(error) => Some(Err(error)),
            },
            Request::Digest {
                partition, device, ..
            } => {
                let reading = Reading::new(conn, header, request);
                return self.digest(reading, (partition, device), io);
            }
            Request::Chain { partition } => Some(self.replica(partition).and_then(|r| {
                let view = self.replicas[r].serve()?.view(now);
                Ok(Reply::Chain(view))
            })),
            Request::Witness { partition, slot } => Some(self.replica(partition).and_then(|r| {
                self.replicas[r].requests += 1;
                let (config, highest) = self.replicas[r].serve()?.witness(slot);
                Ok(Reply::Witness { config, highest })
            })),
            Request::Status => Some(Ok(Reply::Status(self.status(now)))),
            Request::Paces => {
                let devices = self.devices.iter();
                let paces = devices.map(|slot| slot.holding.pace(slot.no, now));
                Some(Ok(Reply::Paces(paces.collect())))
            }
            Request::ReportShard {
                device,
                shard,
                fault,
            } => Some(self.report(device, shard, fault)),
        };
        match outcome {
            None => {}
            Some(Ok(reply)) => self.answer(io, conn, number, &reply, Payload::None),
            Some(Err(error)) => {
                let fatal = error.code == ErrorCode::WrongCluster;
                self.answer(io, conn, number, &Reply::Error(error), Payload::None);
                if fatal {
                    io.close(conn);
                }
            }
        }
    }

    fn hello(
        &mut self,
        conn: ConnId,
        cluster: ashlar_layout::ids::ClusterId,
        caller: (NodeId, u32),
        io: &mut impl Driver,
    ) -> Result<Reply, WireError> {
        let (node, _) = caller;
        let map = &self.maps.map;
        if cluster != map.cluster {
            return Err(WireError {
                code: ErrorCode::WrongCluster,
                detail: format!(
                    "this is node {} of cluster {}, the caller belongs to {cluster}",
                    self.shared.node, map.cluster
                ),
            });
        }
        if node.0 != 0 && map.node(node).is_none() {
            return Err(WireError {
                code: ErrorCode::BadRequest,
                detail: format!(
                    "node {node} is not in the cluster map of epoch {}",
                    map.epoch
                ),
            });
        }
        // A peer's core that calls anew has given its older calls up: what still stands in them is stale.
        let older = |(id, state): (&ConnId, &Conn)| {
            let same = node.0 != 0 && state.hello == Some(caller) && state.peer_out.is_none();
            (same && *id != conn).then_some(*id)
        };
        let older: Vec<ConnId> = self.conns.iter().filter_map(older).collect();
        for id in older {
            io.abort(id);
            self.conns.remove(&id);
        }
        if let Some(state) = self.conns.get_mut(&conn) {
            state.hello = Some(caller);
        }
        Ok(Reply::Hello {
            node: self.shared.node,
            epoch: map.epoch,
        })
    }

    /// Whether a connection's caller said that it is another node of the map.
    fn is_node(&self, conn: ConnId) -> bool {
        let hello = self.conns.get(&conn).and_then(|c| c.hello);
        hello.is_some_and(|(node, _)| node.0 != 0 && self.maps.map.node(node).is_some())
    }

    fn device_op(
        &mut self,
        (device, haste, counts, now): (DeviceNo, Haste, bool, Instant),
        pending: impl FnOnce(Meter) -> Pending,
        event: impl FnOnce(u64) -> api::Event<Buf>,
    ) -> Option<Result<Reply, WireError>> {
        match self.serving_device(device) {
            Ok(slot) => {
                let meter = self.meter(slot, haste, counts, 0, now);
                let op = self.ops.insert(pending(meter));
                self.metered(slot, meter, event(op), now);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// The slot of the replica of a partition.
    pub(crate) fn replica(&self, partition: PartitionId) -> Result<usize, WireError> {
        replica_of(&self.replicas, partition).ok_or_else(|| WireError {
            code: ErrorCode::NotHere,
            detail: format!(
                "partition {partition} has no replica on this core of node {}",
                self.shared.node
            ),
        })
    }

    /// How the node is doing, as far as this core knows.
    pub fn status(&self, now: Instant) -> NodeStatus {
        NodeStatus {
            node: self.shared.node,
            epoch: self.maps.map.epoch,
            uptime_ms: now.since(self.started).as_millis() as u64,
            devices: self.devices.iter().map(|d| d.status()).collect(),
            replicas: self
                .replicas
                .iter()
                .filter(|r| !r.over)
                .map(|r| r.status())
                .collect(),
        }
    }

    fn report(
        &mut self,
        device: DeviceNo,
        shard: ShardId,
        fault: FindingKind,
    ) -> Result<Reply, WireError> {
        let slot = self.serving_device(device)?;
        say!("finding: device {device}: shard {shard}: {fault:?}, reported by a reader");
        self.devices[slot].found(fault);
        Ok(Reply::Done)
    }

    /// A shard was read and verified by the engine.
    pub(crate) fn shard_read(
        &mut self,
        conn: ConnId,
        request: u64,
        result: Result<api::Output<Buf>, EngineError>,
        io: &mut impl Driver,
    ) {
        match result {
            Ok(api::Output::Shard {
                buf,
                range,
                shard_len,
                shard_crc,
            }) => {
                let whole = range.len() == shard_len as usize;
                let crc = if whole {
                    shard_crc
                } else {
                    crc32(&buf[range.clone()])
                };
                let len = range.len() as u32;
                let payload = Payload::Chunk {
                    chunk: Chunk::Buf(buf, range),
                    len,
                    crc,
                };
                let reply = Reply::Shard {
                    shard_len,
                    shard_crc,
                };
                self.answer(io, conn, request, &reply, payload);
            }
            Ok(_) => {
                let reply = outgoing::error(ErrorCode::Internal, "a read gave no shard");
                self.answer(io, conn, request, &reply, Payload::None);
            }
            Err(e) => {
                let reply = crate::devices::refusal(&e);
                self.answer(io, conn, request, &reply, Payload::None);
            }
        }
    }

    /// Reads a connection again that had too much under way, once it has less.
    pub(crate) fn ease(&mut self, conn: ConnId, io: &mut impl Driver) {
        let Some(state) = self.conns.get_mut(&conn) else {
            return;
        };
        if state.paused
            && state.under_way <= CONNECTION_REQUESTS_MAX / 2
            && io.queued(conn) <= SEND_QUEUE_MAX / 2
        {
            state.paused = false;
            io.resume(conn);
        }
    }
}

/// Whether a change makes sense, before any replica sees it.
fn check_op(op: &Op, header: &FrameHeader, payload: &Bytes) -> Result<(), WireError> {
    let bad = |detail: String| {
        Err(WireError {
            code: ErrorCode::BadRequest,
            detail,
        })
    };
    let (bucket, key) = match op {
        Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. } => {
            return bad("only a head writes of its term, its chain and its bounds".into());
        }
        Op::CreateBucket { bucket } | Op::DeleteBucket { bucket } => (bucket, None),
        Op::Put { bucket, key, .. }
        | Op::Delete { bucket, key }
        | Op::PutVersion { bucket, key, .. }
        | Op::DropVersion { bucket, key, .. }
        | Op::LockVersion { bucket, key, .. }
        | Op::Rename { bucket, key, .. }
        | Op::Relocate { bucket, key, .. } => (bucket, Some(key)),
    };
    if let Err(e) = ashlar_layout::names::check_bucket(bucket) {
        return bad(e.to_string());
    }
    if let Some(key) = key
        && let Err(e) = ashlar_layout::names::check_key(key)
    {
        return bad(e.to_string());
    }
    let manifest = match op {
        Op::Put { manifest, .. }
        | Op::PutVersion { manifest, .. }
        | Op::LockVersion { manifest, .. }
        | Op::Rename { manifest, .. }
        | Op::Relocate { manifest, .. } => Some(manifest),
        Op::DropVersion {
            then: Then::Version { manifest, .. },
            ..
        } => Some(manifest),
        _ => None,
    };
    match manifest {
        Some(manifest) if manifest.body == Body::Inline => {
            if manifest.size != payload.len() as u64 {
                return bad(format!(
                    "the manifest says {} bytes inline, the payload has {}",
                    manifest.size,
                    payload.len()
                ));
            }
            if !payload.is_empty() && manifest.crc != header.payload_crc {
                return bad("the manifest's CRC is not the payload's".into());
            }
            Ok(())
        }
        _ if !payload.is_empty() => bad("only an inline object has a payload".into()),
        _ => Ok(()),
    }
}

//! What the indexes of this core's replicas want done on their devices, and when they have their turns.
//!
//! Invariants:
//! - what an index wanted has one completion, and it goes to the replica that wanted it or to nobody: the
//!   slot's next replica has another life;
//! - a device that is being fenced or shut down completes nothing of an index: to its replica, which is about to
//!   end with it, a failure would say that the index is damaged or that a write is in doubt;
//! - what an engine has no buffer for is tried again, and so is a root that finds no room: neither is a failure;
//! - the work of an index never takes the core from those outside for longer than one turn, and never waits for
//!   them for longer than [`TURN_MAX`].

use std::time::Duration;

use ashlar_cluster_index as index;
use ashlar_cluster_journal as journal;
use ashlar_layout::time::Instant;
use ashlar_node_engine::api;
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::Buf;
use bytes::Bytes;

use crate::core::{Core, Pending, Todo, is_busy};
use crate::loads::kind;
use crate::words::say;

/// The longest time without a turn for an index that wants one, however busy its core is.
const TURN_MAX: Duration = Duration::from_millis(1);

/// What an index wants done on its device, and told when it is done.
#[derive(Clone)]
pub(crate) enum IndexOp {
    Read {
        token: u64,
        at: u64,
        len: u32,
    },
    Write {
        token: u64,
        bytes: Bytes,
    },
    Sync {
        token: u64,
    },
    Root {
        token: u64,
        generation: u64,
        bytes: Bytes,
    },
}

impl Core {
    /// The index of a replica wants something.
    pub(crate) fn index_wants(&mut self, replica: usize, lane: u32, action: index::Action) {
        use index::Action as A;
        let op = match action {
            A::Read { token, at, len } => IndexOp::Read { token, at, len },
            A::Write { token, bytes } => IndexOp::Write { token, bytes },
            A::Sync { token } => IndexOp::Sync { token },
            A::WriteRoot {
                token,
                generation,
                bytes,
            } => IndexOp::Root {
                token,
                generation,
                bytes,
            },
            A::Free { chunks } => {
                let ats = chunks.iter().map(|chunk| chunk.at).collect();
                return self.free_chunks(replica, ats);
            }
            A::Damaged(error) => {
                let device = &mut self.devices[self.replicas[replica].device];
                say!("finding: device {}: {error}", device.no);
                return device.found(kind(&error));
            }
            // The replica's own.
            A::Rooted | A::Done { .. } => return,
        };
        let slot = &mut self.replicas[replica];
        if lane > slot.lane {
            slot.lane = lane;
            let (partition, me) = (slot.partition, slot.me);
            say!("partition {partition}: the replica on device {me} learns a snapshot");
        }
        let life = slot.life;
        self.index_op(replica, life, lane, op);
    }

    fn free_chunks(&mut self, replica: usize, ats: Vec<u64>) {
        let slot = &self.replicas[replica];
        let (device, partition) = (slot.device, slot.partition);
        let event = api::Event::FreeIndex { partition, ats };
        self.todo.push_back(Todo::Engine { device, event });
    }

    /// Begins what an index wants.
    pub(crate) fn index_op(&mut self, replica: usize, life: u64, lane: u32, wanted: IndexOp) {
        let slot = &self.replicas[replica];
        if slot.replica.is_none() || slot.life != life {
            return;
        }
        let (device, partition) = (slot.device, slot.partition);
        let op = self.ops.insert(Pending::Index {
            replica,
            life,
            lane,
            op: wanted.clone(),
        });
        let event = match wanted {
            IndexOp::Read { at, len, .. } => api::Event::ReadIndex { op, at, len },
            IndexOp::Write { bytes, .. } => api::Event::WriteIndex {
                op,
                partition,
                bytes,
            },
            IndexOp::Sync { .. } => api::Event::SyncIndex { op },
            IndexOp::Root {
                generation, bytes, ..
            } => api::Event::WriteRoot {
                op,
                partition,
                generation,
                bytes,
            },
        };
        self.todo.push_back(Todo::Engine { device, event });
    }

    /// The engine has done what an index wanted, or could not.
    pub(crate) fn index_done(
        &mut self,
        (replica, life): (usize, u64),
        lane: u32,
        op: IndexOp,
        result: Result<api::Output<Buf>, EngineError>,
        now: Instant,
    ) {
        let slot = &mut self.replicas[replica];
        if slot.replica.is_none() || slot.life != life {
            return;
        }
        let full = matches!(result, Err(EngineError::DeviceFull { .. }));
        let waits = full && matches!(op, IndexOp::Root { .. });
        if waits || is_busy(&result) {
            let again = Todo::Index {
                replica,
                life,
                lane,
                op,
            };
            return self.park(again, now);
        }
        let (device, partition) = (slot.device, slot.partition);
        let ended = match &result {
            Err(EngineError::Fenced { .. } | EngineError::ShuttingDown { .. }) => return,
            Err(error) => Some(error.to_string()),
            Ok(_) => None,
        };
        let event = match (op, result) {
            (IndexOp::Read { token, .. }, result) => {
                let bytes = match result {
                    Ok(api::Output::Bytes { buf, range }) => {
                        Some(Bytes::copy_from_slice(&buf[range]))
                    }
                    _ => None,
                };
                index::Event::Read { token, bytes }
            }
            (IndexOp::Write { token, .. }, Ok(api::Output::Index { at })) => {
                let result = Ok(at);
                index::Event::Written { token, result }
            }
            (IndexOp::Write { token, .. }, _) => {
                let why = match full {
                    true => index::WriteFailure::Full,
                    false => index::WriteFailure::Failed,
                };
                if full {
                    slot.no_room = Some(self.devices[device].extents_free());
                }
                let result = Err(why);
                index::Event::Written { token, result }
            }
            (IndexOp::Sync { token }, result) => {
                let ok = result.is_ok();
                index::Event::Synced { token, ok }
            }
            (IndexOp::Root { token, .. }, result) => {
                let ok = result.is_ok();
                if ok && !slot.orphans.is_empty() {
                    let orphans = std::mem::take(&mut slot.orphans);
                    self.free_chunks(replica, orphans);
                }
                index::Event::RootWritten { token, ok }
            }
        };
        if let Some(why) = ended {
            say!("partition {partition}: index on its device: {why}");
            let failed = matches!(
                event,
                index::Event::Written {
                    result: Err(index::WriteFailure::Failed),
                    ..
                } | index::Event::Synced { .. }
                    | index::Event::RootWritten { .. }
            );
            if failed {
                // What is durable of it is not known: it is opened anew.
                self.devices[device].reopen_wanted(false);
            }
        }
        let event = journal::Event::Index { lane, event };
        self.todo.push_back(Todo::Replica { replica, event });
    }

    /// Gives a turn to the indexes that want one, if there is nothing better to do or it is time. Whether one has.
    pub(crate) fn take_turns(&mut self, now: Instant) -> bool {
        let idle = !std::mem::take(&mut self.busy);
        if !self.gives_turns() {
            return false;
        }
        let mut any = false;
        for (replica, slot) in self.replicas.iter_mut().enumerate() {
            if slot.wants_turn() && (idle || now.since(slot.turned) >= TURN_MAX) {
                slot.turned = now;
                any = true;
                let event = journal::Event::Turn;
                self.todo.push_back(Todo::Replica { replica, event });
            }
        }
        any
    }
}

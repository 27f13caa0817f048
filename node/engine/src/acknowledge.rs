//! What becomes of a batch under way: durable, acknowledged, published; and of a full extent: sealed.
//!
//! Invariants:
//! - Batches of a stream are acknowledged strictly in order, whatever the order in which they became
//!   durable. The index knows a shard from the moment it is acknowledged.
//! - A tombstone takes effect (index, counts of its target's extent) only when it is durable.
//! - An extent's footer is written when every batch in it has been acknowledged, and if chunks are in it a flush
//!   has ended since: it names durable records only, and all of them. The extent counts as open until the
//!   footer is durable, so it cannot be used again while the footer is on its way.

use ashlar_layout::footer::Footer;
use ashlar_layout::ids::{ExtentNo, ShardId};

use crate::api::{Action, IoFailure, Memory, Output};
use crate::append::{Appended, Batch, Item, Seal, Target, What};
use crate::engine::{Engine, Purpose, StreamNo};
use crate::error::EngineError;
use crate::mutants::mutant;

impl<M: Memory> Engine<M> {
    pub(crate) fn write_done(
        &mut self,
        stream: StreamNo,
        id: u64,
        result: Result<(), IoFailure>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let flying = &mut self.streams[stream as usize].flying;
        let Some(batch) = flying.iter_mut().find(|batch| batch.id == id) else {
            return;
        };
        let offset = batch.offset;
        if let Err(failure) = result {
            return self.fence("write", offset, failure, out);
        }
        batch.writes_left -= 1;
        if batch.writes_left > 0 && !mutant!(AcknowledgeEarly) {
            return;
        }
        if batch.flush && !mutant!(SkipFlush) {
            let io = self.io(Purpose::Flush { stream, batch: id });
            self.flushes += 1;
            out.push(Action::Flush { io });
        } else {
            batch.durable = true;
            self.acknowledge(stream, mem, out);
        }
    }

    pub(crate) fn flush_done(
        &mut self,
        stream: StreamNo,
        id: u64,
        result: Result<(), IoFailure>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let flying = &mut self.streams[stream as usize].flying;
        let Some(batch) = flying.iter_mut().find(|batch| batch.id == id) else {
            return;
        };
        if let Err(failure) = result {
            let offset = batch.offset;
            return self.fence("flush", offset, failure, out);
        }
        batch.durable = true;
        self.acknowledge(stream, mem, out);
    }

    /// Acknowledges the batches at the front that are durable.
    fn acknowledge(&mut self, stream: StreamNo, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        while let Some(batch) = self.streams[stream as usize]
            .flying
            .pop_front_if(|batch| batch.durable)
        {
            if batch.opens {
                self.extents.header_durable(batch.extent);
            }
            for record in batch.records {
                self.publish(batch.extent, record, mem, out);
            }
        }
    }

    fn publish(
        &mut self,
        extent: ExtentNo,
        record: Appended,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        match record {
            Appended::Shard {
                shard,
                candidate,
                len,
                copy,
            } => {
                let hash = self.index.hash(&shard);
                if copy.is_none() {
                    self.rewritten(hash);
                    self.mark(&shard);
                }
                if !mutant!(TurnIndexEarly) || copy.is_none() {
                    self.index.insert(hash, candidate);
                }
                self.extents.born(extent, len);
                if let Some(copy) = copy {
                    self.copied(copy, candidate.block, len);
                }
                self.written(shard, mem, out);
            }
            Appended::Tombstone {
                shard,
                targets,
                hold,
                shadow,
                carried,
            } => {
                if carried {
                    self.carried(shard, extent);
                }
                let hash = self.index.hash(&shard);
                self.extents.changes += 1;
                if hold {
                    self.extents.hold(extent);
                }
                if shadow || self.blind.is_some() {
                    self.shadows.insert(shard);
                }
                for record in targets {
                    let Target { block, .. } = record;
                    let address = block * u64::from(self.geometry.block_size);
                    if self.index.remove(hash, block)
                        && let Some(target) = self.geometry.extent_of(address)
                    {
                        self.extents.killed(target, record, extent);
                    }
                }
                for op in self.deleting.remove(&shard).unwrap_or_default() {
                    out.push(Action::Done {
                        op,
                        result: Ok(Output::Durable),
                    });
                }
            }
            Appended::Journal {
                partition,
                last,
                sequence,
                ops,
            } => {
                self.holdings.appended(extent, partition, last, sequence);
                for (op, at) in ops {
                    out.push(Action::Done {
                        op,
                        result: Ok(Output::Journal { at, sequence }),
                    });
                }
            }
            Appended::Chunk {
                op,
                partition,
                sequence,
                at,
                len,
            } => {
                self.holdings.wrote_chunk(partition, at, len, sequence);
                out.push(Action::Done {
                    op,
                    result: Ok(Output::Index { at }),
                });
            }
            Appended::Root {
                op,
                partition,
                sequence,
            } => {
                let former = self.holdings.wrote_root(partition, extent, sequence);
                self.free_unneeded(former);
                out.push(Action::Done {
                    op,
                    result: Ok(Output::Durable),
                });
            }
        }
    }

    /// A shard is durable, or was so already: answers who waits for that.
    pub(crate) fn written(&mut self, shard: ShardId, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        let Some(writing) = self.writing.remove(&shard) else {
            return;
        };
        for op in writing.ops {
            out.push(Action::Done {
                op,
                result: Ok(Output::Durable),
            });
        }
        for op in writing.deletes {
            self.delete_shard(op, shard, mem, out);
        }
    }

    /// Answers an append that cannot be done.
    pub(crate) fn refuse(
        &mut self,
        what: What<M::Buf>,
        error: &EngineError,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let mut deletes = None;
        let ops = match what {
            What::Header => Vec::new(),
            What::Item(
                mut item @ Item::Shard {
                    shard,
                    copy: Some(of),
                    ..
                },
            ) => {
                self.copy_refused(of);
                if let Item::Shard { copy, .. } = &mut item {
                    *copy = None;
                }
                return self.not_copied(shard, item, mem, out);
            }
            What::Item(Item::Shard { shard, .. }) => {
                let writing = self.writing.remove(&shard);
                let (ops, waiting) = writing.map_or_else(Default::default, |w| (w.ops, w.deletes));
                deletes = Some((shard, waiting));
                ops
            }
            What::Item(Item::Tombstone { shard, carried, .. }) => {
                let ops = self.deleting.remove(&shard).unwrap_or_default();
                if carried {
                    self.carry_refused(shard);
                    // The first one is still there: the shard is as it was.
                    deletes = Some((shard, ops));
                    Vec::new()
                } else {
                    ops
                }
            }
            What::Item(
                Item::Journal { op, .. } | Item::Chunk { op, .. } | Item::Root { op, .. },
            ) => vec![op],
            What::Entries {
                partition, parts, ..
            } => {
                // What continues it must not become durable without it.
                let queue = &mut self.streams[StreamNo::Journal as usize].queue;
                let mut ops: Vec<u64> = parts.into_iter().map(|(op, ..)| op).collect();
                queue.retain(|item| match item {
                    Item::Journal {
                        op,
                        partition: other,
                        ..
                    } if *other == partition => {
                        ops.push(*op);
                        false
                    }
                    _ => true,
                });
                ops
            }
        };
        for op in ops {
            out.push(Action::Done {
                op,
                result: Err(error.clone()),
            });
        }
        self.extents.changes += 1;
        // There may be an older, damaged record of it.
        if let Some((shard, ops)) = deletes {
            for op in ops {
                self.delete_shard(op, shard, mem, out);
            }
        }
    }

    /// A shard is not copied after all. Who wrote it meanwhile is answered by what is there of it.
    fn not_copied(
        &mut self,
        shard: ShardId,
        item: Item<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Some(writing) = self.writing.remove(&shard) else {
            return;
        };
        if !writing.ops.is_empty() {
            let Err(error) = self.check_stored(shard, item, mem, out) else {
                self.writing.insert(shard, writing);
                return;
            };
            for op in writing.ops {
                out.push(Action::Done {
                    op,
                    result: Err(error.clone()),
                });
            }
        }
        for op in writing.deletes {
            self.delete_shard(op, shard, mem, out);
        }
    }

    /// Writes the footers of extents in which nothing is under way any more.
    pub(crate) fn write_footers(&mut self, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        for at in 0..self.seals.len() {
            let Seal {
                extent,
                writing,
                settled,
                ..
            } = &self.seals[at];
            let no = extent.no;
            let busy = |batch: &Batch| batch.extent == no;
            if *writing
                || self
                    .streams
                    .iter()
                    .any(|stream| stream.flying.iter().any(busy))
            {
                continue;
            }
            if !settled {
                self.seals[at].writing = true;
                self.flush(Purpose::Settle(no), out);
                continue;
            }
            let end = self.geometry.extent_end(no);
            let footer = Footer {
                device: self.device,
                extent: no,
                incarnation: extent.incarnation,
                owner_epoch: self.owner_epoch,
                records_end: extent.pos,
                entries: extent.entries.clone(),
            };
            let bytes = footer.encode(end, self.geometry.block_size);
            let Some(mut buf) = mem.alloc(bytes.len()) else {
                return;
            };
            buf[..bytes.len()].copy_from_slice(&bytes);
            let offset = end - bytes.len() as u64;
            self.seals[at].writing = true;
            let io = self.io(Purpose::Footer(no));
            out.push(Action::Write {
                io,
                offset,
                buf,
                len: bytes.len(),
                durable: true,
            });
        }
    }

    pub(crate) fn footer_done(
        &mut self,
        no: ExtentNo,
        result: Result<(), IoFailure>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if let Err(failure) = result {
            let end = self.geometry.extent_end(no);
            return self.fence("write of a footer", end, failure, out);
        }
        self.seals.retain(|seal| seal.extent.no != no);
        self.extents.seal(no);
        self.extents.free_if_dead(no);
        self.free_unneeded([no]);
        self.seals_since_checkpoint += 1;
    }
}

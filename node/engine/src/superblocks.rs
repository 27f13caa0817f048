//! Turning the superblock: writing its next version to four copies so that a crash at any point
//! leaves two copies that agree.
//!
//! Invariants:
//! - At any instant two copies that hold the believed superblock, or two that hold the next one, are
//!   durable. Copies that do *not* hold the believed one are therefore written first: the first pair
//!   leaves at least two holders of the old one untouched, and the second pair begins only when the
//!   first is durable. (Always writing 0 and 1 first would lose the device to two crashes in a row:
//!   one that tears 2 and 3, and one that then tears 0 and 1.)
//! - The sequence number is above every one that was seen on any copy, believed or not.
//! - A copy that an audit found to be bad counts as no holder from then on, so it is written first, too; one that it
//!   could not read may be a holder, and is written behind those.
//! - One turn at a time. A failed write ends the turn; what is believed is then not known, and the
//!   owner reopens the device.

use ashlar_layout::limits::SUPERBLOCK_COPIES;
use ashlar_layout::superblock::{self, COUNTER_MAX, SUPERBLOCK_LEN, Superblock};

use crate::api::{Action, IoFailure, Memory};

/// The superblock of an open device, and what each copy of it holds.
pub(crate) struct Superblocks<B> {
    current: Superblock,
    /// Which copies hold `current`.
    holders: [Holding; SUPERBLOCK_COPIES],
    newest: u64,
    turn: Option<Turn<B>>,
}

/// Whether a copy holds the superblock that is believed, in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holding {
    /// It holds something else.
    Not,
    /// It could not be read.
    Unknown,
    /// It does.
    Holds,
}

struct Turn<B> {
    next: Superblock,
    /// Buffers of the second pair, kept until the first is durable.
    second: Vec<(u8, B)>,
    /// I/Os under way, with their offsets.
    waiting: Vec<(u64, u64)>,
}

/// What became of a turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The I/O is not one of this turn.
    NotMine,
    /// It goes on.
    Waiting,
    /// The next superblock is durable on all copies.
    Turned,
    /// A write failed, at this offset.
    Failed(u64, IoFailure),
}

impl<B> Superblocks<B>
where
    B: std::ops::DerefMut<Target = [u8]>,
{
    /// `current` was elected from `copies`.
    pub fn new(current: Superblock, copies: &[Option<Superblock>; SUPERBLOCK_COPIES]) -> Self {
        let holders = std::array::from_fn(|place| {
            let holds = copies[place].as_ref().is_some_and(|copy| {
                usize::from(copy.copy) == place && copy.body_crc() == current.body_crc()
            });
            if holds { Holding::Holds } else { Holding::Not }
        });
        let newest = superblock::newest_sequence(copies);
        Superblocks {
            current,
            holders,
            newest,
            turn: None,
        }
    }

    /// The superblock that is durable.
    pub fn current(&self) -> &Superblock {
        &self.current
    }

    /// Whether this copy is known to hold it.
    pub fn holds(&self, copy: u8) -> bool {
        self.holders[usize::from(copy)] == Holding::Holds
    }

    /// The highest sequence number that was seen on any copy.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// This copy was found not to hold it, or could not be read: the next turn writes it before the good ones.
    pub fn lost(&mut self, copy: u8, holding: Holding) {
        self.holders[usize::from(copy)] = holding;
    }

    /// This number was seen on a copy: the next turn has a higher one. One that no run of turns comes to is not gone
    /// by, or none would be left.
    pub fn saw(&mut self, sequence: u64) {
        if sequence < COUNTER_MAX / 2 {
            self.newest = self.newest.max(sequence);
        }
    }

    pub fn turning(&self) -> bool {
        self.turn.is_some()
    }

    /// Starts a turn to the superblock that `change` makes of its successor. False if there was no
    /// buffer, or a turn is under way: nothing has happened then.
    pub fn start<M: Memory<Buf = B>>(
        &mut self,
        change: impl FnOnce(&mut Superblock),
        mem: &mut M,
        next_io: &mut u64,
        out: &mut Vec<Action<B>>,
    ) -> bool {
        if self.turn.is_some() {
            return false;
        }
        let mut next = self.current.succeed(self.newest);
        change(&mut next);
        let mut order: [u8; SUPERBLOCK_COPIES] = std::array::from_fn(|copy| copy as u8);
        order.sort_by_key(|copy| self.holders[usize::from(*copy)]);
        let mut buffers = Vec::with_capacity(SUPERBLOCK_COPIES);
        for copy in order {
            let Some(mut buf) = mem.alloc(SUPERBLOCK_LEN) else {
                return false;
            };
            buf[..SUPERBLOCK_LEN].copy_from_slice(&next.encode(copy));
            buffers.push((copy, buf));
        }
        let second = buffers.split_off(SUPERBLOCK_COPIES / 2);
        self.newest = next.sequence;
        let mut turn = Turn {
            next,
            second,
            waiting: Vec::new(),
        };
        turn.write(buffers, next_io, out);
        self.turn = Some(turn);
        true
    }

    /// An I/O has ended.
    pub fn done(
        &mut self,
        io: u64,
        result: Result<(), IoFailure>,
        next_io: &mut u64,
        out: &mut Vec<Action<B>>,
    ) -> Progress {
        let Some(turn) = &mut self.turn else {
            return Progress::NotMine;
        };
        let Some(at) = turn.waiting.iter().position(|(waiting, _)| *waiting == io) else {
            return Progress::NotMine;
        };
        let (_, offset) = turn.waiting.swap_remove(at);
        if let Err(failure) = result {
            self.turn = None;
            return Progress::Failed(offset, failure);
        }
        if !turn.waiting.is_empty() {
            return Progress::Waiting;
        }
        let second = std::mem::take(&mut turn.second);
        if !second.is_empty() {
            turn.write(second, next_io, out);
            return Progress::Waiting;
        }
        if let Some(turn) = self.turn.take() {
            self.current = turn.next;
            self.holders = [Holding::Holds; SUPERBLOCK_COPIES];
        }
        Progress::Turned
    }
}

impl<B> Turn<B> {
    fn write(&mut self, pair: Vec<(u8, B)>, next_io: &mut u64, out: &mut Vec<Action<B>>) {
        for (copy, buf) in pair {
            let io = *next_io;
            *next_io += 1;
            let offset = superblock::offset(copy, self.next.extent_size);
            self.waiting.push((io, offset));
            out.push(Action::Write {
                io,
                offset,
                buf,
                len: SUPERBLOCK_LEN,
                durable: true,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId, OwnerEpoch};
    use ashlar_layout::superblock::{Labels, elect};

    use super::*;

    type Copies = [Option<Superblock>; SUPERBLOCK_COPIES];

    struct Heap;

    impl Memory for Heap {
        type Buf = Vec<u8>;

        fn alloc(&mut self, len: usize) -> Option<Vec<u8>> {
            Some(vec![0; len])
        }
    }

    fn fresh() -> Copies {
        let superblock = Superblock {
            cluster: ClusterId([1; 16]),
            device: DeviceId([2; 16]),
            sequence: 1,
            parent_crc: 0,
            block_size: 4096,
            extent_size: 1 << 20,
            device_size: 64 << 20,
            owner_epoch: OwnerEpoch(0),
            incarnation_ceiling: 1,
            record_ceiling: 1,
            checkpoint: None,
            node: NodeId(1),
            device_no: DeviceNo(1),
            labels: Labels::default(),
            clean: false,
            copy: 0,
        };
        std::array::from_fn(|copy| {
            Some(Superblock {
                copy: copy as u8,
                ..superblock
            })
        })
    }

    /// Writes that were handed out: which copy, with what.
    fn writes(out: &mut Vec<Action<Vec<u8>>>) -> Vec<(u64, usize, Superblock)> {
        let one = |action: Action<Vec<u8>>| match action {
            Action::Write { io, buf, .. } => {
                let superblock = Superblock::decode(&buf).unwrap();
                (io, usize::from(superblock.copy), superblock)
            }
            other => panic!("{other:?}"),
        };
        out.drain(..).map(one).collect()
    }

    /// Turns the superblock, with power failing at every point, each copy in flight left old, new or
    /// torn; and again from each of the states that gives. Counts the states.
    fn explore(copies: &Copies, depth: u32, states: &mut u64) {
        *states += 1;
        let before = elect(copies).unwrap_or_else(|error| panic!("{error}: {copies:?}"));
        if depth == 0 {
            return;
        }
        let mut superblocks = Superblocks::new(before, copies);
        let (mut next_io, mut out) = (1, Vec::new());
        let raise = |next: &mut Superblock| next.owner_epoch.0 += 1;
        assert!(superblocks.start(raise, &mut Heap, &mut next_io, &mut out));
        let mut durable = *copies;
        for pair in 0..2 {
            let flying = writes(&mut out);
            assert_eq!(flying.len(), 2);
            for outcome in 0..9 {
                let mut crashed = durable;
                for ((_, copy, superblock), outcome) in
                    flying.iter().zip([outcome % 3, outcome / 3])
                {
                    match outcome {
                        0 => {}
                        1 => crashed[*copy] = Some(*superblock),
                        _ => crashed[*copy] = None,
                    }
                }
                let now = elect(&crashed).unwrap_or_else(|error| panic!("{error}: {crashed:?}"));
                assert!(
                    now.sequence >= before.sequence,
                    "what was believed is never forgotten"
                );
                assert!(pair == 0 || now.owner_epoch.0 == before.owner_epoch.0 + 1);
                explore(&crashed, depth - 1, states);
            }
            for (io, copy, superblock) in flying {
                durable[copy] = Some(superblock);
                let progress = superblocks.done(io, Ok(()), &mut next_io, &mut out);
                assert!(matches!(progress, Progress::Waiting | Progress::Turned));
            }
        }
        assert_eq!(
            superblocks.current().owner_epoch.0,
            before.owner_epoch.0 + 1
        );
        assert!(durable.iter().all(|copy| {
            copy.is_some_and(|copy| copy.owner_epoch == superblocks.current().owner_epoch)
        }));
    }

    #[test]
    fn what_is_known_to_be_bad_is_written_before_what_could_not_be_read() {
        let copies = fresh();
        let before = elect(&copies).unwrap();
        let mut superblocks = Superblocks::new(before, &copies);
        superblocks.lost(0, Holding::Unknown);
        superblocks.lost(1, Holding::Unknown);
        superblocks.lost(3, Holding::Not);
        superblocks.saw(7);
        superblocks.saw(COUNTER_MAX);
        let (mut next_io, mut out) = (1, Vec::new());
        assert!(superblocks.start(|_| {}, &mut Heap, &mut next_io, &mut out));
        let first = writes(&mut out);
        let copies: Vec<usize> = first.iter().map(|(_, copy, _)| *copy).collect();
        assert_eq!(copies, [3, 0]);
        assert!(
            first
                .iter()
                .all(|(.., superblock)| superblock.sequence == 8)
        );
    }

    #[test]
    fn no_run_of_crashes_loses_the_superblock() {
        let mut states = 0;
        explore(&fresh(), 3, &mut states);
        assert_eq!(states, 1 + 18 + 18 * 18 + 18 * 18 * 18);
    }
}

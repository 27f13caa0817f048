//! What the state machines of this crate and their driver say to each other.
//!
//! Invariants:
//! - a call's number is never used twice in an operation: an answer that comes late finds nothing;
//! - a driver answers each [`Action::Send`] at most once, and promptly once the connection is gone;
//! - a driver hands over only what passed the checksums of its frame.

use ashlar_layout::ids::{DeviceNo, PartitionId, StripeId};
use ashlar_layout::message::{ErrorCode, Reply, Request, WireError};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::encode::StripeBuf;

/// A request of one operation: the part of the operation that asked (its *lane*), then a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    /// Which part of the operation asked.
    pub lane: u32,
    /// Counts up in the lane.
    pub call: u32,
}

/// Numbers the calls of one lane.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    lane: u32,
    next: u32,
}

impl Calls {
    pub(crate) fn new(lane: u32) -> Calls {
        Calls { lane, next: 0 }
    }

    pub(crate) fn next(&mut self) -> CallId {
        let call = self.next;
        self.next += 1;
        CallId {
            lane: self.lane,
            call,
        }
    }
}

/// What a driver is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send a request to the core that owns a device, and hand over the answer.
    Send {
        /// To be repeated with the answer.
        call: CallId,
        /// The device; the map says which core owns it.
        to: DeviceNo,
        /// What is asked.
        request: Request,
        /// The frame's payload.
        payload: Bytes,
        /// The payload's CRC-32, if it is known already.
        payload_crc: Option<u32>,
    },
    /// Send a request whose answer nobody waits for.
    Tell {
        /// The device.
        to: DeviceNo,
        /// What is said.
        request: Request,
    },
    /// Ask the device who the head of a partition's chain is and who its members are, and tell
    /// [`crate::Heads::heard`].
    View {
        /// The partition.
        partition: PartitionId,
        /// The device.
        device: DeviceNo,
    },
    /// Ask the device's node how it is, and tell [`crate::Health::probed`].
    Probe {
        /// The device.
        device: DeviceNo,
    },
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A reply, errors included.
    Reply {
        /// The reply.
        reply: Reply,
        /// The frame's payload.
        payload: Bytes,
        /// The payload's CRC-32, verified.
        payload_crc: u32,
    },
    /// The request certainly never reached the node.
    NotSent {
        /// Why.
        detail: String,
    },
    /// The request may have reached the node; no answer will come.
    Lost {
        /// Why.
        detail: String,
    },
}

impl Answer {
    /// The newer map that came with an answer to a caller whose own is old: empty if it did not come. None if it is no
    /// such answer.
    pub fn newer_map(&self) -> Option<&[u8]> {
        let Answer::Reply {
            reply: Reply::Error(WireError { code, .. }),
            payload,
            ..
        } = self
        else {
            return None;
        };
        let moved = matches!(
            code,
            ErrorCode::StaleEpoch | ErrorCode::NotHere | ErrorCode::Moved
        );
        moved.then_some(payload)
    }
}

/// What happens to an operation.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first event of each operation.
    Start,
    /// A call ended.
    Answer {
        /// Which one.
        call: CallId,
        /// How.
        answer: Answer,
    },
    /// The time of `next_deadline` has come, or is past.
    Deadline,
    /// Put only: the whole object, small enough to ride in the journal.
    Inline(Bytes),
    /// Put only: the next stripe's bytes. Only when `wants_data`.
    Stripe(StripeBuf),
    /// Put only: there are no more bytes.
    End,
    /// The caller has gone away, or the source failed.
    Abort,
}

/// Something that a driver drives.
pub trait Machine {
    /// Takes one event, and says what is to be done.
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>);
    /// When it wants [`Event::Deadline`] at the latest.
    fn next_deadline(&self) -> Option<Instant>;
    /// Whether the caller can be answered.
    fn is_answered(&self) -> bool;
    /// Whether nothing is left to do, behind the answer either.
    fn is_settled(&self) -> bool;
    /// What was left behind so far.
    fn leftover(&self) -> Leftover {
        Leftover::default()
    }
}

/// The earlier of two deadlines.
pub(crate) fn sooner(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// What was left behind when an operation settled: the auditor's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    /// Shards of acknowledged stripes that did not become durable.
    pub late_lost: u64,
    /// Shards that should be gone and may not be.
    pub unfreed: u64,
    /// Stripes whose shards could not even be named, because a tree node could not be read.
    pub unread_nodes: u64,
}

impl Leftover {
    pub(crate) fn add(&mut self, other: Leftover) {
        self.late_lost += other.late_lost;
        self.unfreed += other.unfreed;
        self.unread_nodes += other.unread_nodes;
    }
}

/// Makes stripe ids: unique per attempt, for as long as the writer's number is.
#[derive(Debug)]
pub(crate) struct StripeIds {
    writer: u64,
    attempt: std::sync::atomic::AtomicU64,
}

impl StripeIds {
    pub(crate) fn new(writer: u64) -> StripeIds {
        StripeIds {
            writer,
            attempt: std::sync::atomic::AtomicU64::new(1),
        }
    }

    /// None: it has counted as far as it may, and the next number would be taken for that of a move.
    pub(crate) fn next(&self) -> Option<StripeId> {
        let attempt = self
            .attempt
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = StripeId {
            writer: self.writer,
            attempt,
        };
        (id.origin() == id).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_counted_to_the_bits_of_moves_makes_no_more_ids() {
        let ids = StripeIds::new(7);
        assert_eq!(ids.next().map(|id| id.attempt), Some(1));
        let last = (1 << 40) - 1;
        ids.attempt
            .store(last, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ids.next().map(|id| id.attempt), Some(last));
        assert_eq!((ids.next(), ids.next()), (None, None));
    }
}

//! The end of a core in order: heads hand over, devices end what they have begun, answers go out.
//!
//! Invariants:
//! - what was accepted is answered, and the answer goes out, before the loop ends; or the time is up;
//! - a device takes nothing more once it is shut, and its replicas and indexes hear no failure of that.

use std::time::Duration;

use ashlar_cluster_journal as journal;
use ashlar_layout::time::Instant;
use ashlar_node_reactor::Driver;

use crate::core::{Core, Todo};
use crate::devices::DeviceSlot;
use crate::replicas::ReplicaSlot;

/// How long a draining core waits for what is under way, in all,
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// for its heads to commit what they have begun, and to hand over,
const LEAVE_MAX: Duration = Duration::from_millis(200);
/// and for the other replicas to commit what its own devices have taken.
const ANSWERS_MAX: Duration = Duration::from_secs(1);

/// How far a draining core has come. It only moves down this list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Heads hand over, until then.
    Heads(Instant),
    /// Devices end what they have begun.
    Devices,
    /// Changes that they took may still be committed and answered, until then.
    Answers(Instant),
    /// Connections end with what is queued on them.
    Replies,
}

impl Core {
    /// Ends in order: what was accepted is answered, and the answers go out, before the loop ends.
    pub(crate) fn drain(&mut self, now: Instant, io: &mut impl Driver) {
        if self.draining_until.is_none() {
            self.draining_until = Some(now + DRAIN_MAX);
            self.drain = Drain::Heads(now + LEAVE_MAX);
            for replica in 0..self.replicas.len() {
                let event = journal::Event::Leave;
                self.todo.push_back(Todo::Replica { replica, event });
            }
            self.work(now, io);
        }
        if let Drain::Heads(until) = self.drain
            && (now >= until || !self.replicas.iter().any(ReplicaSlot::in_office))
        {
            self.drain = Drain::Devices;
            for device in 0..self.devices.len() {
                self.shut_device(device);
            }
        }
        let late = self.draining_until.is_some_and(|until| now >= until);
        if self.drain == Drain::Devices && (late || self.devices.iter().all(DeviceSlot::is_down)) {
            self.drain = Drain::Answers(now + ANSWERS_MAX);
        }
        if let Drain::Answers(until) = self.drain {
            let answered = self.conns.values().all(|conn| conn.under_way == 0);
            if answered || late || now >= until {
                self.drain = Drain::Replies;
                for replica in 0..self.replicas.len() {
                    self.stop_replica(replica, io);
                }
                for conn in self.conns.keys() {
                    io.close(*conn);
                }
            }
        }
        // A connection is gone when its peer has taken the rest, or takes nothing for a while.
        if self.drain == Drain::Replies && (late || self.conns.is_empty()) {
            self.finished = true;
        }
    }
}

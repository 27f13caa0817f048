//! What audits and repairs ask of a device: measured by what it does to others, and held back while these are measured
//! without it. What follows from that is [`Governor`]'s to say.
//!
//! Invariants:
//! - what is held back goes to the device in the order in which it came, and nothing of the background passes it;
//! - it is held back for two slots at the most, not while nobody else uses the device, and not while the node ends;
//! - no more is held back than so many requests, and so many bytes of buffers: what is above that goes on.

use std::collections::VecDeque;

use ashlar_cluster_audit::govern::{Arrival, Bound, Governor};
use ashlar_layout::frame::Haste;
use ashlar_layout::ids::DeviceNo;
use ashlar_layout::limits::SHARD_SIZE_MAX;
use ashlar_layout::pace::DevicePace;
use ashlar_layout::time::Instant;
use ashlar_node_engine::api::{self, Output};
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::Buf;

use crate::audit::AuditConfig;
use crate::core::{Core, Todo};

/// Requests of a device that are held back at the most,
const HELD_MAX: usize = 64;
/// and the part of the pool that they may hold: one in so many.
const HELD_POOL: usize = 16;

/// For what a request counts when it is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meter {
    /// For nothing.
    None,
    /// It is one of others.
    Others { device: usize, arrival: Arrival },
    /// It is one of the background, with so many bytes if that is known.
    Background { device: usize, bytes: u64 },
}

/// What is held back of a device.
pub(crate) struct Holding<E = api::Event<Buf>> {
    governor: Governor,
    percent: u32,
    held: VecDeque<(E, usize)>,
    /// Bytes of the buffers in there.
    bytes: usize,
    /// How often something was held back.
    count: u64,
    release_at: Option<Instant>,
}

impl<E> Holding<E> {
    pub(crate) fn new(device: DeviceNo, audit: &AuditConfig) -> Holding<E> {
        let bound = Bound {
            percent: audit.p99_percent,
            floor: audit.floor,
            most: audit.most,
        };
        Holding {
            governor: Governor::new(bound, u64::from(device.0)),
            percent: audit.p99_percent,
            held: VecDeque::new(),
            bytes: 0,
            count: 0,
            release_at: None,
        }
    }

    /// The device was opened.
    pub(crate) fn opened(&mut self) {
        self.governor.opened();
    }

    /// Takes what goes to the device in the background with a buffer of so many bytes. `go` gets what goes there now.
    fn take(
        &mut self,
        now: Instant,
        (event, bytes): (E, usize),
        bytes_max: usize,
        mut go: impl FnMut(E),
    ) {
        let until = self.governor.holds(now);
        if until.is_none() && self.held.is_empty() {
            self.governor.begins();
            return go(event);
        }
        self.held.push_back((event, bytes));
        self.bytes += bytes;
        self.count += 1;
        // None: the slot is over, and what was held before goes on at the end of the round.
        self.release_at = self.release_at.or(Some(until.unwrap_or(now)));
        while self.held.len() > HELD_MAX || self.bytes > bytes_max {
            let Some(event) = self.pop() else { return };
            go(event);
        }
    }

    fn pop(&mut self) -> Option<E> {
        let (event, bytes) = self.held.pop_front()?;
        self.bytes -= bytes;
        self.governor.begins();
        Some(event)
    }

    /// Gives `go` what was held back, if it may go on.
    fn release(&mut self, now: Instant, anyway: bool, mut go: impl FnMut(E)) {
        if self.release_at.is_none_or(|at| now < at && !anyway) {
            return;
        }
        self.release_at = self.governor.holds(now).filter(|_| !anyway);
        while self.release_at.is_none()
            && let Some(event) = self.pop()
        {
            go(event);
        }
    }

    /// When something is to go on.
    pub(crate) fn release_at(&self) -> Option<Instant> {
        self.release_at
    }

    pub(crate) fn pace(&self, device: DeviceNo, now: Instant) -> DevicePace {
        let told = self.governor.told(now);
        DevicePace {
            device,
            allowed: told.allowed,
            percent: self.percent,
            p99_us: told.p99_us,
        }
    }
}

impl Core {
    /// How a request of this haste counts that comes now; `counts`: others are measured by it.
    pub(crate) fn meter(
        &mut self,
        device: usize,
        haste: Haste,
        counts: bool,
        bytes: u64,
        now: Instant,
    ) -> Meter {
        let governor = &mut self.devices[device].holding.governor;
        match haste {
            Haste::Foreground if counts => Meter::Others {
                device,
                arrival: governor.arrives(now),
            },
            Haste::Background => Meter::Background { device, bytes },
            _ => Meter::None,
        }
    }

    /// Gives a device what is asked of it, now or when its time comes.
    pub(crate) fn metered(
        &mut self,
        device: usize,
        meter: Meter,
        event: api::Event<Buf>,
        now: Instant,
    ) {
        let Meter::Background { .. } = meter else {
            return self.todo.push_back(Todo::Engine { device, event });
        };
        let buffer = match &event {
            api::Event::WriteShard { buf, .. } => buf.len(),
            // It takes one when it goes on, and all that was held back goes on at once.
            api::Event::ReadShard { len, .. } => (*len).min(SHARD_SIZE_MAX) as usize,
            _ => 0,
        };
        let bytes_max = match self.draining() {
            true => 0,
            false => self.memory.0.capacity() / HELD_POOL,
        };
        let todo = &mut self.todo;
        let holding = &mut self.devices[device].holding;
        holding.take(now, (event, buffer), bytes_max, |event| {
            todo.push_back(Todo::Engine { device, event });
        });
    }

    /// A request was answered by its device.
    pub(crate) fn measure(
        &mut self,
        meter: Meter,
        result: &Result<Output<Buf>, EngineError>,
        now: Instant,
    ) {
        match (meter, result) {
            // What was refused tells nothing of the device.
            (Meter::None, _) | (Meter::Others { .. }, Err(_)) => {}
            (Meter::Others { device, arrival }, Ok(_)) => {
                self.devices[device].holding.governor.answered(now, arrival);
            }
            (Meter::Background { device, bytes }, result) => {
                let bytes = match result {
                    Ok(Output::Shard { range, .. }) => range.len() as u64,
                    Ok(Output::Audited(audited)) => audited.bytes,
                    Ok(_) => bytes,
                    Err(_) => 0,
                };
                self.devices[device].holding.governor.ended(now, bytes);
            }
        }
    }

    /// How often devices held back what audits and repairs asked of them.
    pub fn held_back(&self) -> u64 {
        let counts = self.devices.iter().map(|device| device.holding.count);
        counts.sum()
    }

    /// Lets go on what was held back, where its time has come.
    pub(crate) fn release(&mut self, now: Instant) {
        let draining = self.draining();
        for (device, slot) in self.devices.iter_mut().enumerate() {
            let anyway = draining || !slot.is_serving();
            slot.holding.release(now, anyway, |event| {
                self.todo.push_back(Todo::Engine { device, event });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ashlar_cluster_audit::govern::SLOT;

    use super::*;

    fn holding() -> Holding<u32> {
        Holding::new(DeviceNo(7), &AuditConfig::default())
    }

    fn others(holding: &mut Holding<u32>, now: Instant) {
        for _ in 0..20 {
            let arrival = holding.governor.arrives(now);
            holding.governor.answered(now, arrival);
        }
    }

    /// As often as it likes, for ten seconds: what goes to the device, and when.
    fn run(
        holding: &mut Holding<u32>,
        from: Instant,
        wanted: bool,
    ) -> Vec<(Instant, u32, Instant)> {
        let mut gone = Vec::new();
        for n in 0..1000u32 {
            let now = from + Duration::from_millis(10) * n;
            if wanted {
                others(holding, now);
            }
            holding.release(now, false, |n| gone.push((now, n)));
            holding.take(now, (n, 100), 1 << 20, |n| gone.push((now, n)));
        }
        let end = from + Duration::from_secs(11);
        holding.release(end, false, |n| gone.push((end, n)));
        let came = |n| from + Duration::from_millis(10) * n;
        gone.into_iter().map(|(at, n)| (at, n, came(n))).collect()
    }

    #[test]
    fn held_back_in_order_and_not_for_long() {
        let mut holding = holding();
        let gone = run(&mut holding, Instant(1 << 40), true);
        assert_eq!(gone.len(), 1000);
        assert!(gone.iter().map(|(_, n, _)| *n).eq(0..1000));
        let waits = gone.iter().map(|(at, _, came)| at.since(*came));
        let longest = waits.clone().max();
        assert!(longest <= Some(SLOT * 2 + Duration::from_millis(10)));
        let held = waits.filter(|wait| *wait > Duration::ZERO).count();
        assert!((400..600).contains(&held), "about half: {held}");
        assert_eq!((holding.bytes, holding.held.len()), (0, 0));
    }

    #[test]
    fn nothing_waits_for_nobody() {
        let mut holding = holding();
        let gone = run(&mut holding, Instant(1 << 40), false);
        assert!(gone.iter().all(|(at, _, came)| at == came));
        assert_eq!(holding.release_at(), None);
    }

    /// Many at once, or with large buffers: the oldest go on.
    #[test]
    fn what_is_held_back_is_bounded() {
        let mut holding = holding();
        let mut now = Instant(1 << 40);
        others(&mut holding, now);
        while holding.governor.holds(now).is_none() {
            now = now + SLOT;
        }
        let mut gone = Vec::new();
        for n in 0..100 {
            holding.take(now, (n, 10), 500, |n| gone.push(n));
        }
        assert_eq!(gone, (0..50).collect::<Vec<_>>());
        for n in 100..200 {
            holding.take(now, (n, 0), 500, |n| gone.push(n));
        }
        assert_eq!(holding.held.len(), HELD_MAX);
        // The device fails: whoever asked is told.
        holding.release(now, true, |n| gone.push(n));
        assert_eq!(gone, (0..200).collect::<Vec<_>>());
        assert_eq!(holding.release_at(), None);
    }
}

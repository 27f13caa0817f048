//! Which devices are believed to be reachable, and how fast they are.
//!
//! Belief is a matter of speed, never of truth: a device that is wrongly believed to be away costs
//! a smaller class or a rebuild, one that is wrongly believed to be there costs a time-out.
//!
//! Invariants:
//! - a device is suspect from its first failure on, and until it does something right: an answer
//!   to a probe, or to a request that was sent there for want of others;
//! - at most one probe of a device is under way, and the pause before the next one doubles up to
//!   [`BACKOFF_MAX`];
//! - *full* is a separate belief: it stops writes and leaves reads alone;
//! - memory grows with the devices of the map, not with what happens to them.

use std::collections::HashMap;
use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::DeviceNo;
use ashlar_layout::message::Reply;
use ashlar_layout::time::Instant;

use crate::call::Answer;
use crate::error::{Away, Fault};
use crate::latency::{Kind, Latencies};

/// The pause before the first probe of a suspect.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause between probes: well below what an operation waits for devices.
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A probe that is not answered in this time has failed.
pub const PROBE_TIME: Duration = Duration::from_secs(2);
/// Between probes of a full device.
const FULL_PAUSE: Duration = Duration::from_secs(2);
/// Bounds of the time a shard may take before its device is suspect.
const DEADLINE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Bounds of the time after which a read is hedged.
const HEDGE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(500));
/// The time after which a read is hedged while nothing is known.
const HEDGE_UNKNOWN: Duration = Duration::from_millis(20);

/// One in so many choices of witnesses disregards how fast they were.
const EXPLORE: u64 = 64;
/// No witness is thought to be slower, in nanoseconds.
const LATE_MAX: u64 = 1_000_000_000;

#[derive(Clone, Debug)]
struct Suspicion {
    cause: String,
    backoff: Duration,
    probe_at: Instant,
    probing: bool,
    full: bool,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It serves.
    Serving,
    /// It serves reads and has no room.
    Full,
    /// It does not serve.
    Away(String),
}

impl Probed {
    /// What a node's answer to [`Request::Status`](ashlar_layout::message::Request::Status) says of one of its
    /// devices.
    pub fn of(device: DeviceNo, answer: Answer) -> Probed {
        let status = match answer {
            Answer::Reply {
                reply: Reply::Status(status),
                ..
            } => status,
            Answer::Reply {
                reply: Reply::Error(error),
                ..
            } => return Probed::Away(error.detail),
            Answer::Reply { .. } => return Probed::Away("it gives no status".to_owned()),
            Answer::NotSent { detail } | Answer::Lost { detail } => return Probed::Away(detail),
        };
        let found = status.devices.iter().find(|d| d.device == device);
        match found.map(|d| d.state.as_str()) {
            Some("serving") => Probed::Serving,
            Some("full") => Probed::Full,
            Some(state) => Probed::Away(format!("it is {state}")),
            None => Probed::Away("its node does not know it".to_owned()),
        }
    }
}

/// Beliefs about devices, and latencies.
#[derive(Clone, Debug, Default)]
pub struct Health {
    suspects: HashMap<DeviceNo, Suspicion>,
    latencies: Latencies,
    /// How long witnesses take to answer, on an average that forgets, in nanoseconds.
    witnesses: HashMap<DeviceNo, u64>,
}

impl Health {
    /// Whether a read from it is expected to work.
    pub fn is_readable(&self, device: DeviceNo) -> bool {
        self.suspects.get(&device).is_none_or(|s| s.full)
    }

    /// Whether a write to it is expected to work.
    pub fn is_writable(&self, device: DeviceNo) -> bool {
        !self.suspects.contains_key(&device)
    }

    /// Something was done right, in this time.
    pub fn worked(&mut self, device: DeviceNo, kind: Kind, bytes: u32, took: Duration) {
        self.latencies.record(kind, bytes, took);
        // A read says nothing of a full device's room.
        if self
            .suspects
            .get(&device)
            .is_some_and(|s| !s.full || kind == Kind::Write)
        {
            self.suspects.remove(&device);
        }
    }

    /// A witness answered, in this time.
    pub fn witnessed(&mut self, device: DeviceNo, took: Duration) {
        self.worked(device, Kind::Witness, 0, took);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / 8);
        let known = self.witnesses.entry(device).or_insert(took);
        *known = (*known / 8).saturating_mul(7).saturating_add(took / 8);
    }

    /// A witness has not answered in this time, in which it should have.
    pub fn witness_late(&mut self, device: DeviceNo, waited: Duration) {
        let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        let known = self.witnesses.entry(device).or_default();
        *known = known.saturating_mul(2).max(waited).min(LATE_MAX);
    }

    /// Puts witnesses in the order in which they are best asked: those that should answer, the faster
    /// ones, and among equals (within a factor of two) in turn. Once in a while all are equals: a slow one
    /// may be fast by now.
    pub fn rank(&self, witnesses: &mut [DeviceNo], turn: u64) {
        if !witnesses.is_empty() {
            let by = turn % witnesses.len() as u64;
            witnesses.rotate_left(usize::try_from(by).unwrap_or(0));
        }
        let explores = turn % EXPLORE == EXPLORE - 1;
        witnesses.sort_by_key(|device| {
            let pace = self.witnesses.get(device).filter(|_| !explores);
            let pace = pace.copied().unwrap_or(0);
            (
                !self.is_readable(*device),
                pace.checked_ilog2().unwrap_or(0),
            )
        });
    }

    /// After this time another witness is asked.
    pub fn hedge_witness(&self) -> Duration {
        let (min, max) = HEDGE;
        self.latencies
            .p95(Kind::Witness, 0)
            .map_or(HEDGE_UNKNOWN, |p95| p95.clamp(min, max))
    }

    /// Something took at least so long, and was not waited for.
    pub fn seen(&mut self, kind: Kind, bytes: u32, took: Duration) {
        self.latencies.record(kind, bytes, took);
    }

    /// Something failed. A fault of a single shard (missing, corrupt) is none of the device.
    pub fn failed(&mut self, now: Instant, device: DeviceNo, fault: &Fault) {
        let full = match fault {
            Fault::Missing | Fault::Bad(..) | Fault::Busy(_) => return,
            Fault::Full(_) => true,
            _ => false,
        };
        self.suspect(now, device, fault.to_string(), full);
    }

    fn suspect(&mut self, now: Instant, device: DeviceNo, cause: String, full: bool) {
        let pause = if full { FULL_PAUSE } else { BACKOFF_MIN };
        match self.suspects.get_mut(&device) {
            // More of the same: the running pause stands, or many requests would push it out of sight.
            Some(known) if known.full == full => known.cause = cause,
            // Being away outweighs being full.
            Some(known) if full && !known.full => {}
            _ => {
                let fresh = Suspicion {
                    cause,
                    backoff: pause,
                    probe_at: now + pause,
                    probing: false,
                    full,
                };
                self.suspects.insert(device, fresh);
            }
        }
    }

    /// The suspects whose pause is over; each is taken to be probed now.
    pub fn due(&mut self, now: Instant) -> Vec<DeviceNo> {
        if self.suspects.is_empty() {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (device, suspicion) in &mut self.suspects {
            if suspicion.probing && suspicion.probe_at + PROBE_TIME + PROBE_TIME < now {
                // Whoever was to answer is gone.
                suspicion.probing = false;
            }
            if !suspicion.probing && suspicion.probe_at <= now {
                suspicion.probing = true;
                due.push(*device);
            }
        }
        due.sort_unstable();
        due
    }

    /// When the next suspect is to be probed.
    pub fn next_probe(&self) -> Option<Instant> {
        self.suspects
            .values()
            .filter(|s| !s.probing)
            .map(|s| s.probe_at)
            .min()
    }

    /// What a probe found.
    pub fn probed(&mut self, now: Instant, device: DeviceNo, found: Probed) {
        match found {
            Probed::Serving => {
                self.suspects.remove(&device);
            }
            Probed::Full => {
                let pause = FULL_PAUSE;
                let cause = "it has no room".to_owned();
                let full = Suspicion {
                    cause,
                    backoff: pause,
                    probe_at: now + pause,
                    probing: false,
                    full: true,
                };
                self.suspects.insert(device, full);
            }
            Probed::Away(cause) => {
                let backoff = self.suspects.get(&device).map_or(BACKOFF_MIN, |s| {
                    if s.full {
                        BACKOFF_MIN
                    } else {
                        (s.backoff * 2).min(BACKOFF_MAX)
                    }
                });
                let away = Suspicion {
                    cause,
                    backoff,
                    probe_at: now + backoff,
                    probing: false,
                    full: false,
                };
                self.suspects.insert(device, away);
            }
        }
    }

    /// The devices of `map` that a write cannot use, and why.
    pub fn away(&self, map: &ClusterMap) -> Vec<Away> {
        let mut away: Vec<Away> = map
            .devices
            .iter()
            .filter_map(|device| {
                let suspicion = self.suspects.get(&device.no)?;
                Some(Away {
                    device: device.no,
                    node: device.node,
                    full: suspicion.full,
                    cause: suspicion.cause.clone(),
                })
            })
            .collect();
        away.sort_by_key(|a| a.device);
        away
    }

    /// Whether no suspect that comes back could help: every group has a full device.
    pub fn is_full(&self, map: &ClusterMap) -> bool {
        let full = |no: &DeviceNo| self.suspects.get(no).is_some_and(|s| s.full);
        map.groups
            .iter()
            .all(|group| group.devices.iter().any(full))
    }

    /// After this time a shard is too late, and its device suspect.
    pub fn deadline(&self, kind: Kind, bytes: u32) -> Duration {
        let (min, max) = DEADLINE;
        self.latencies
            .p95(kind, bytes)
            .map_or(max, |p95| (p95 * 8).clamp(min, max))
    }

    /// After this time a read of so many bytes is hedged.
    pub fn hedge(&self, bytes: u32) -> Duration {
        let (min, max) = HEDGE;
        self.latencies
            .p95(Kind::Read, bytes)
            .map_or(HEDGE_UNKNOWN, |p95| p95.clamp(min, max))
    }

    /// The latencies themselves.
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::message::FindingKind;

    use super::*;

    const D: DeviceNo = DeviceNo(3);

    fn at(millis: u64) -> Instant {
        Instant(millis * 1_000_000)
    }

    fn refused() -> Fault {
        Fault::Away("refused".to_owned())
    }

    #[test]
    fn a_suspect_is_probed_after_a_pause_that_doubles() {
        let mut health = Health::default();
        assert!(health.is_writable(D) && health.is_readable(D));
        health.failed(at(0), D, &refused());
        assert!(!health.is_writable(D) && !health.is_readable(D));
        assert!(health.due(at(99)).is_empty());
        assert_eq!(health.due(at(100)), [D]);
        assert!(health.due(at(101)).is_empty(), "one probe at a time");
        health.probed(at(110), D, Probed::Away("still refused".to_owned()));
        assert!(health.due(at(309)).is_empty());
        assert_eq!(health.due(at(310)), [D]);
        health.probed(at(310), D, Probed::Serving);
        assert!(health.is_writable(D));
        assert_eq!(health.next_probe(), None);
    }

    #[test]
    fn further_failures_do_not_push_the_probe_away() {
        let mut health = Health::default();
        for t in 0..100 {
            health.failed(at(t), D, &refused());
        }
        assert_eq!(health.due(at(100)), [D]);
    }

    #[test]
    fn a_probe_that_nobody_answers_is_sent_again() {
        let mut health = Health::default();
        health.failed(at(0), D, &refused());
        assert_eq!(health.due(at(100)), [D]);
        assert_eq!(health.due(at(4000)), []);
        assert_eq!(health.due(at(4200)), [D]);
    }

    #[test]
    fn full_stops_writes_only() {
        let mut health = Health::default();
        health.failed(at(0), D, &Fault::Full("0 bytes left".to_owned()));
        assert!(!health.is_writable(D) && health.is_readable(D));
        health.worked(D, Kind::Read, 1, Duration::ZERO);
        assert!(!health.is_writable(D));
        health.failed(at(1), D, &refused());
        assert!(!health.is_readable(D));
        health.failed(at(2), D, &Fault::Full("0 bytes left".to_owned()));
        assert!(!health.is_readable(D));
    }

    #[test]
    fn the_fast_and_the_well_witness_first() {
        let mut health = Health::default();
        let [a, b, c] = [DeviceNo(1), DeviceNo(2), DeviceNo(3)];
        let ranked = |health: &Health, turn| {
            let mut all = [a, b, c];
            health.rank(&mut all, turn);
            all
        };
        assert_eq!(ranked(&health, 0), [a, b, c]);
        assert_eq!(ranked(&health, 1), [b, c, a], "equals take turns");
        for _ in 0..20 {
            health.witnessed(a, Duration::from_millis(30));
            health.witnessed(b, Duration::from_micros(150));
            health.witnessed(c, Duration::from_micros(160));
        }
        assert_eq!(ranked(&health, 0), [b, c, a]);
        assert_eq!(ranked(&health, 2), [c, b, a]);
        health.failed(at(0), b, &refused());
        assert_eq!(ranked(&health, 1), [c, a, b]);
        health.probed(at(1), b, Probed::Serving);
        for _ in 0..10 {
            health.witness_late(b, Duration::from_millis(2));
        }
        assert_eq!(ranked(&health, 0), [c, a, b]);
        assert_eq!(
            ranked(&health, EXPLORE - 1)[0],
            a,
            "now and then all are tried"
        );
    }

    #[test]
    fn a_bad_shard_is_no_bad_device() {
        let mut health = Health::default();
        for fault in [
            Fault::Missing,
            Fault::Bad(FindingKind::Rot, "x".into()),
            Fault::Bad(FindingKind::Unreadable, "y".into()),
        ] {
            health.failed(at(0), D, &fault);
        }
        assert!(health.is_writable(D));
    }

    #[test]
    fn deadlines_follow_what_was_seen_within_bounds() {
        let mut health = Health::default();
        assert_eq!(health.deadline(Kind::Write, 4096), DEADLINE.1);
        for _ in 0..100 {
            health.worked(D, Kind::Write, 4096, Duration::from_micros(300));
            health.worked(D, Kind::Read, 4096, Duration::from_micros(300));
        }
        assert_eq!(health.deadline(Kind::Write, 4096), DEADLINE.0);
        assert_eq!(health.hedge(4096), HEDGE.0);
        for _ in 0..1000 {
            health.worked(D, Kind::Write, 4096, Duration::from_millis(20));
        }
        let adaptive = health.deadline(Kind::Write, 4096);
        assert!(adaptive > Duration::from_millis(150) && adaptive < Duration::from_millis(250));
    }
}

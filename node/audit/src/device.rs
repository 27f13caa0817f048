//! A node's devices look at themselves: one pass after another for each of them, at the pace of all audits.
//!
//! What a device is looked at for, and what is wrong, is the device's own to say; here is when it goes on, and what is
//! recorded of it.
//!
//! Invariants:
//! - a step is paid for before the next one is made, so that no more is read than the pace of the device allows, but
//!   for one step;
//! - a device that is away is waited for, and a step that cannot be made is left out after a while, be parts of it made
//!   or not: a pass ends;
//! - what was counted is recorded with what the day's document had; one that somebody else has written meanwhile is
//!   read again. What was counted since it was last recorded is lost with the process: it is counted by the next pass;
//! - nothing is counted twice: of a sum whose writing failed it is seen first whether it stands there.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_audit::record::{DAY_MS, device_day};
use ashlar_cluster_audit::{Charge, Closed, Tally};
use ashlar_layout::ids::{DeviceNo, Seq};
use tokio::sync::Mutex;
use tokio::time::{sleep, sleep_until};

use crate::census::{self, Ask, Counted};
use crate::ledger::{self, LedgerError};
use crate::node::Node;

/// What a step that reads nothing counts as, in bytes.
const ASKING: u64 = 4096;
/// Bytes that are paid for at once.
const CHARGE_MAX: u64 = 1 << 20;
/// How long is waited for a device that is away, or has no room for a step.
const WAIT: Duration = Duration::from_secs(1);
/// How often a step is tried that there is no room for.
const TRIES_MAX: u32 = 30;
/// What was found, and that a pass has ended, is recorded no more often than so,
const RECORD_FOUND_MS: u64 = 10_000;
/// and what was read beside that.
const RECORD_MS: u64 = 600_000;

/// The devices of a node.
pub trait Devices: Send + Sync + 'static {
    /// A step of a pass through one of them.
    type Step: Copy + PartialEq + Send + Sync;

    /// Which there are.
    fn all(&self) -> Vec<DeviceNo>;

    /// With what a pass begins.
    fn first(&self) -> Self::Step;

    /// What comes behind a step that cannot be made; none at the end.
    fn behind(&self, step: Self::Step) -> Option<Self::Step>;

    /// Has a device make a step.
    fn look(
        &self,
        device: DeviceNo,
        step: Self::Step,
    ) -> impl Future<Output = Answer<Self::Step>> + Send;

    /// Asks a device something for a census; none if it does not serve, or has no room for that now.
    fn count(&self, device: DeviceNo, ask: Ask) -> impl Future<Output = Option<Counted>> + Send;
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<S> {
    /// It was made.
    Seen(Seen<S>),
    /// There is no room for it now.
    Busy,
    /// The device does not serve.
    Away,
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<S> {
    /// Where to go on; none at the end of a pass.
    pub next: Option<S>,
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes of memory that were gone through.
    pub memory: u64,
    /// The names of what is wrong.
    pub found: Vec<&'static str>,
    /// How many of these were only counted, and not told one by one.
    pub untold: u64,
    /// Nothing could be seen, or not all.
    pub left_out: bool,
}

/// A pass through a device.
struct Walk<S> {
    /// The step that is to be made; none at the end.
    step: Option<S>,
    tries: u32,
    /// What it came to.
    found: u64,
    untold: u64,
    left_out: u64,
    bytes: u64,
}

/// What is to be done before the next step.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    Pay(u64),
    Wait,
}

impl<S: Copy + PartialEq> Walk<S> {
    fn new(first: S) -> Walk<S> {
        Walk {
            step: Some(first),
            tries: 0,
            found: 0,
            untold: 0,
            left_out: 0,
            bytes: 0,
        }
    }

    /// Takes the answer to the step, and counts it.
    fn take(
        &mut self,
        answer: Answer<S>,
        behind: impl FnOnce(S) -> Option<S>,
        counted: &mut Tally,
    ) -> Then {
        match answer {
            Answer::Away => Then::Wait,
            Answer::Busy => {
                self.tries += 1;
                if self.tries >= TRIES_MAX {
                    self.tries = 0;
                    self.left_out += 1;
                    counted.device_left_out += 1;
                    self.step = self.step.and_then(behind);
                }
                Then::Wait
            }
            Answer::Seen(seen) => {
                // A part of a step is no end of it.
                if seen.next != self.step {
                    self.tries = 0;
                }
                self.step = seen.next;
                self.bytes = self.bytes.saturating_add(seen.bytes);
                self.found += seen.found.len() as u64;
                self.untold += seen.untold;
                self.left_out += u64::from(seen.left_out);
                counted.device_bytes = counted.device_bytes.saturating_add(seen.bytes);
                counted.device_left_out += u64::from(seen.left_out);
                counted.device_passes += u64::from(seen.next.is_none());
                for name in seen.found {
                    *counted.device_found.entry(name.to_owned()).or_default() += 1;
                }
                Then::Pay(seen.bytes.saturating_add(seen.memory).max(ASKING))
            }
        }
    }
}

/// What was counted of a device, and what is known to be recorded of it.
#[derive(Default)]
struct Sums {
    /// What was counted, and is in no sum.
    counted: Tally,
    /// What the document of this day says, as far as is known.
    known: Option<(Option<Seq>, Closed)>,
    /// The sum that was last tried to be written, and what of it is new. Whether it stands there is not known.
    tried: Option<(Closed, Tally)>,
}

impl Sums {
    /// Whether there is anything to record.
    fn is_due(&self) -> bool {
        self.tried.is_some() || self.counted.tells_of_devices()
    }

    /// The day whose document has to be read first.
    fn unsettled(&self) -> Option<u64> {
        self.tried.as_ref().map(|(sum, _)| sum.day)
    }

    /// This stands there, of the day of the sum that was tried: that is recorded, or is yet to be.
    fn settle(&mut self, there: Option<(Seq, Closed)>) {
        let Some((sum, part)) = self.tried.take() else {
            return;
        };
        match there.filter(|(_, there)| *there == sum) {
            Some((version, sum)) => self.known = Some((Some(version), sum)),
            None => {
                self.known = None;
                self.counted.add(&part);
            }
        }
    }

    /// What is to be written over what this day's document says.
    fn attempt(&mut self, mut sum: Closed) -> Closed {
        let part = std::mem::take(&mut self.counted);
        sum.tally.add(&part);
        self.known = None;
        self.tried = Some((sum.clone(), part));
        sum
    }

    /// It is written.
    fn written(&mut self, version: Seq) {
        self.known = self.tried.take().map(|(sum, _)| (Some(version), sum));
    }
}

/// What is recorded of a device.
struct Book {
    node: Arc<Node>,
    device: DeviceNo,
    sums: Sums,
    recorded_ms: u64,
    failed: bool,
}

impl Book {
    fn tell(&self, what: &str) {
        (self.node.options.tell)(&format!("audit of device {}: {what}", self.device));
    }

    /// Records what was counted, if it is time to.
    async fn record(&mut self, at_end: bool) {
        let since = ledger::wall_ms().abs_diff(self.recorded_ms);
        let found = !self.sums.counted.device_found.is_empty();
        let news = at_end || found || self.sums.tried.is_some();
        let due = if news { RECORD_FOUND_MS } else { RECORD_MS };
        if !self.sums.is_due() || since < due {
            return;
        }
        self.recorded_ms = ledger::wall_ms();
        match self.write().await {
            Ok(()) => self.failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    self.tell(&format!("it cannot be recorded: {error}"));
                }
            }
        }
    }

    async fn write(&mut self) -> Result<(), LedgerError> {
        let client = &self.node.client;
        if let Some(day) = self.sums.unsettled() {
            let there = ledger::read::<Closed>(client, &device_day(day, self.device)).await?;
            self.sums.settle(there);
        }
        if !self.sums.is_due() {
            return Ok(());
        }
        let day = self.recorded_ms / DAY_MS;
        let key = device_day(day, self.device);
        let fresh = self.sums.known.take_if(|(_, closed)| closed.day == day);
        let (version, closed) = match fresh {
            Some(known) => known,
            None => {
                ledger::found(client).await?;
                let found = ledger::read::<Closed>(client, &key).await?;
                let none = || Closed {
                    day,
                    tally: Tally::default(),
                };
                found.map_or_else(
                    || (None, none()),
                    |(version, closed)| (Some(version), closed),
                )
            }
        };
        let sum = self.sums.attempt(closed);
        match ledger::write(client, &key, &sum, version).await? {
            Some(version) => self.sums.written(version),
            // It may be ours, by an answer that was lost: then it is recorded.
            None => self.sums.settle(ledger::read(client, &key).await?),
        }
        Ok(())
    }
}

/// Has a device look at itself and be counted, for ever. It may be dropped at any time.
pub(crate) async fn run<D: Devices>(node: Arc<Node>, device: DeviceNo, devices: Arc<D>) {
    let turn = Mutex::new(());
    let census = census::run(node.clone(), device, devices.clone(), &turn);
    tokio::select! {
        () = look(node.clone(), device, devices, &turn) => {}
        () = census => {}
    }
}

/// Has a device look at itself, for ever. `turn` is held while it is asked.
async fn look<D: Devices>(node: Arc<Node>, device: DeviceNo, devices: Arc<D>, turn: &Mutex<()>) {
    let mut book = Book {
        node: node.clone(),
        device,
        sums: Sums::default(),
        // The end of the first pass is.
        recorded_ms: ledger::wall_ms().saturating_sub(RECORD_FOUND_MS),
        failed: false,
    };
    loop {
        let next = node
            .clock
            .at(node.clock.now() + node.options.pass.max(WAIT));
        let mut walk = Walk::new(devices.first());
        while let Some(step) = walk.step {
            let answer = {
                let _turn = turn.lock().await;
                devices.look(device, step).await
            };
            let told = walk.untold;
            let then = walk.take(answer, |step| devices.behind(step), &mut book.sums.counted);
            if told == 0 && walk.untold > 0 {
                book.tell("so much is wrong that the rest of a kind is only counted, until this pass ends");
            }
            match then {
                Then::Wait => sleep(WAIT).await,
                Then::Pay(bytes) => pay(&node, device, bytes).await,
            }
            book.record(false).await;
        }
        book.record(true).await;
        let Walk {
            found,
            untold,
            left_out,
            bytes,
            ..
        } = walk;
        if found > 0 || left_out > 0 {
            book.tell(&format!(
                "it looked at itself, {bytes} bytes read: {found} findings, of which {untold} are only counted; \
                 {left_out} steps left out, or parts of them"
            ));
        }
        sleep_until(next).await;
    }
}

/// Waits until so much may have been read.
async fn pay(node: &Node, device: DeviceNo, bytes: u64) {
    let mut left = bytes;
    while left > 0 {
        let bytes = left.min(CHARGE_MAX);
        node.pay(&[Charge { device, bytes }], false).await;
        left -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(step: u32) -> Option<u32> {
        (step < 2).then_some(step + 1)
    }

    fn seen(next: Option<u32>, bytes: u64, found: &[&'static str]) -> Answer<u32> {
        Answer::Seen(Seen {
            next,
            bytes,
            memory: 0,
            found: found.to_vec(),
            untold: 0,
            left_out: false,
        })
    }

    #[test]
    fn a_pass_counts_what_it_saw() {
        let (mut walk, mut tally) = (Walk::new(0u32), Tally::default());
        let then = walk.take(seen(Some(1), 9000, &[]), behind, &mut tally);
        assert_eq!((then, walk.step), (Then::Pay(9000), Some(1)));
        let then = walk.take(seen(Some(2), 0, &["footer", "footer"]), behind, &mut tally);
        assert_eq!((then, walk.step), (Then::Pay(ASKING), Some(2)));
        assert_eq!(tally.device_passes, 0);
        walk.take(seen(None, 100, &["superblock"]), behind, &mut tally);
        assert_eq!((walk.step, walk.found, walk.bytes), (None, 3, 9100));
        assert_eq!((tally.device_bytes, tally.device_passes), (9100, 1));
        let found = [("footer".to_owned(), 2), ("superblock".to_owned(), 1)];
        assert_eq!(tally.device_found, found.into_iter().collect());
        assert_eq!(tally.bad(), 0, "they are no shards");
    }

    #[test]
    fn what_is_away_is_waited_for_and_what_has_no_room_is_left_out_in_the_end() {
        let (mut walk, mut tally) = (Walk::new(1u32), Tally::default());
        for _ in 0..10 * TRIES_MAX {
            assert_eq!(walk.take(Answer::Away, behind, &mut tally), Then::Wait);
        }
        assert_eq!((walk.step, walk.left_out), (Some(1), 0));
        for _ in 0..TRIES_MAX {
            assert_eq!(walk.step, Some(1));
            assert_eq!(walk.take(Answer::Busy, behind, &mut tally), Then::Wait);
        }
        assert_eq!((walk.step, tally.device_left_out), (Some(2), 1));
        for _ in 0..TRIES_MAX {
            walk.take(Answer::Busy, behind, &mut tally);
        }
        assert_eq!((walk.step, walk.left_out), (None, 2));
    }

    #[test]
    fn what_is_gone_through_in_memory_is_paid_for_and_not_counted_as_read() {
        let (mut walk, mut tally) = (Walk::new(0u32), Tally::default());
        let looked = Answer::Seen(Seen {
            next: Some(1),
            bytes: 100,
            memory: 45_056,
            found: Vec::new(),
            untold: 7,
            left_out: true,
        });
        assert_eq!(walk.take(looked, behind, &mut tally), Then::Pay(45_156));
        assert_eq!((walk.bytes, walk.untold, walk.left_out), (100, 7, 1));
        assert_eq!((tally.device_bytes, tally.device_left_out), (100, 1));
    }

    /// A step of which parts are made, and for which there is no room in between.
    #[test]
    fn a_step_that_does_not_end_is_left_out() {
        let (mut walk, mut tally) = (Walk::new(1u32), Tally::default());
        for _ in 0..TRIES_MAX {
            assert_eq!(walk.step, Some(1));
            walk.take(seen(Some(1), 9000, &[]), behind, &mut tally);
            walk.take(Answer::Busy, behind, &mut tally);
        }
        assert_eq!((walk.step, walk.left_out), (Some(2), 1));
    }

    fn counted(bytes: u64) -> Tally {
        Tally {
            device_bytes: bytes,
            ..Tally::default()
        }
    }

    fn day(bytes: u64) -> Closed {
        Closed {
            day: 7,
            tally: counted(bytes),
        }
    }

    #[test]
    fn what_was_written_and_not_answered_is_not_added_twice() {
        // It was: what was counted since is added to that.
        let mut sums = Sums {
            counted: counted(5),
            ..Sums::default()
        };
        assert_eq!(sums.attempt(day(100)), day(105));
        sums.counted.add(&counted(2));
        assert_eq!(sums.unsettled(), Some(7));
        sums.settle(Some((Seq(3), day(105))));
        assert_eq!(
            (&sums.known, sums.unsettled()),
            (&Some((Some(Seq(3)), day(105))), None)
        );
        assert_eq!(sums.attempt(day(105)), day(107));
        sums.written(Seq(4));
        assert_eq!(sums.known, Some((Some(Seq(4)), day(107))));
        assert!(!sums.is_due());
        // It was not, and another's stands there.
        for there in [None, Some((Seq(9), day(100)))] {
            let mut sums = Sums {
                counted: counted(5),
                ..Sums::default()
            };
            sums.attempt(day(100));
            sums.counted.add(&counted(2));
            assert!(sums.is_due());
            sums.settle(there);
            assert_eq!((sums.known.clone(), sums.counted.device_bytes), (None, 7));
        }
    }
}

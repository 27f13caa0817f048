//! The governor on a device whose latencies follow a law: what it comes to is known.

use std::collections::VecDeque;
use std::time::Duration;

use ashlar_layout::time::Instant;
use proptest::prelude::*;

use crate::govern::{Bound, Governor, SLOT};

const MIB: u64 = 1 << 20;
/// Bytes of a read of the background.
const CHUNK: u64 = MIB;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }
}

fn at_us(us: u64) -> Instant {
    Instant(1_000_000_000 + us * 1000)
}

/// A device with one server (M/M/1): how long a request is there is exponential, with the rate that is left of what
/// it can do in a second.
struct Device {
    governor: Governor,
    rng: Rng,
    now_us: u64,
    /// Requests of others in a second, and those that the device can do.
    foreground: f64,
    capacity: f64,
    /// Requests of the background at the least, whatever is allowed: 0, or all that there are.
    greed: f64,
    /// What a request of the background costs others.
    weight: f64,
    /// Of a thousand milliseconds in so many all requests are late together.
    hiccups: u64,
    hiccup_until: u64,
    /// Answers on their way: when, and to what.
    under_way: VecDeque<(u64, crate::govern::Arrival)>,
    next_us: f64,
    owed: f64,
    /// What auditors have heard last.
    heard: u64,
}

fn bound() -> Bound {
    Bound {
        percent: 10,
        floor: MIB,
        most: 256 * MIB,
    }
}

impl Device {
    fn new(seed: u64, foreground: f64, capacity: f64) -> Device {
        Device {
            governor: Governor::new(bound(), seed),
            rng: Rng(seed),
            now_us: 0,
            foreground,
            capacity,
            greed: 0.0,
            weight: 1.0,
            hiccups: 0,
            hiccup_until: 0,
            under_way: VecDeque::new(),
            next_us: 0.0,
            owed: 0.0,
            heard: MIB,
        }
    }

    /// Bytes a second that make the 99th percentile longer by what is allowed: all are read in half of the time.
    fn ideal(&self) -> f64 {
        let left = self.capacity - self.foreground;
        left * (1.0 - 1.0 / 1.1) / 2.0 / self.weight * CHUNK as f64
    }

    /// Goes on for so many seconds, and gives the mean of what was allowed, in bytes a second.
    fn run(&mut self, seconds: u64) -> f64 {
        let (mut sum, mut count) = (0.0, 0u64);
        for _ in 0..seconds * 1000 {
            self.millisecond();
            sum += self.governor.told(at_us(self.now_us)).allowed as f64;
            count += 1;
        }
        sum / count as f64
    }

    fn millisecond(&mut self) {
        self.now_us += 1000;
        let now = at_us(self.now_us);
        if self.now_us.is_multiple_of(2_000_000) {
            self.heard = self.governor.told(now).allowed;
        }
        // The background: what was held back is made up for in the next slot.
        let rate = (self.heard as f64).max(self.greed);
        self.owed = (self.owed + rate / 1000.0).min(rate);
        let held = self.governor.holds(now).is_some();
        let mut busy = 0.0;
        if !held && self.owed > 0.0 {
            let part = self.owed.min(rate / 500.0);
            self.owed -= part;
            self.governor.begins();
            self.governor.ended(now, part as u64);
            busy = self.weight * part * 1000.0 / CHUNK as f64;
        }
        let left = (self.capacity - self.foreground - busy).max(self.capacity / 50.0);
        if self.hiccups > 0 && self.rng.next() % 1000 < self.hiccups {
            self.hiccup_until = self.now_us + 20_000;
        }
        while self.foreground > 0.0 && self.next_us < self.now_us as f64 {
            let came = self.next_us as u64;
            self.next_us += self.rng.exponential() * 1e6 / self.foreground;
            let mut takes = self.rng.exponential() * 1e6 / left;
            if self.now_us < self.hiccup_until {
                takes += 50_000.0 * self.rng.unit();
            }
            let arrival = self.governor.arrives(at_us(came.max(self.now_us - 1000)));
            let done = came.max(self.now_us - 1000) + takes as u64;
            self.under_way.push_back((done, arrival));
        }
        let governor = &mut self.governor;
        let now_us = self.now_us;
        self.under_way.retain(|(done, arrival)| {
            let is_done = *done <= now_us;
            if is_done {
                governor.answered(at_us(*done), *arrival);
            }
            !is_done
        });
    }

    fn stop(&mut self) {
        self.foreground = 0.0;
    }
}

#[test]
fn it_comes_to_the_rate_that_keeps_the_bound() {
    for seed in 1..=4 {
        let mut device = Device::new(seed, 1000.0, 2000.0);
        device.run(400);
        let mean = device.run(2000);
        let ideal = device.ideal();
        assert!(
            (0.6 * ideal..1.3 * ideal).contains(&mean),
            "seed {seed}: {mean:.0} of {ideal:.0}"
        );
    }
}

/// Four times as fast a device, of which half is used: four times as much.
#[test]
fn what_can_do_more_is_read_faster() {
    let mut device = Device::new(5, 2000.0, 2500.0);
    device.run(400);
    let (slow, ideal) = (device.run(1500), device.ideal());
    device.foreground = 1000.0;
    device.run(300);
    let (fast, more) = (device.run(1500), device.ideal());
    assert!(
        (0.6 * ideal..1.3 * ideal).contains(&slow),
        "{slow:.0} of {ideal:.0}"
    );
    assert!(
        fast > 0.6 * more && fast < 256.0 * MIB as f64,
        "{fast:.0} of {more:.0}"
    );
}

#[test]
fn it_recovers_when_nobody_else_is_there() {
    let mut device = Device::new(6, 1800.0, 2000.0);
    device.run(300);
    let told = device.governor.told(at_us(device.now_us));
    assert!(told.allowed < 20 * MIB, "{told:?}");
    let (with, without) = told.p99_us.unwrap();
    // 4.6 times the mean, which is 5 ms.
    assert!(
        (18_000..29_000).contains(&without) && with < 2 * without,
        "{told:?}"
    );
    device.stop();
    device.run(11);
    let now = at_us(device.now_us);
    assert_eq!(device.governor.told(now).allowed, 256 * MIB);
    assert_eq!(device.governor.holds(now), None);
    // What was learned is not forgotten.
    device.foreground = 1800.0;
    device.next_us = device.now_us as f64;
    device.run(1);
    let now = at_us(device.now_us);
    assert!(device.governor.told(now).allowed < 20 * MIB);
}

#[test]
fn whatever_it_does_to_others_there_is_a_floor() {
    let mut device = Device::new(7, 1000.0, 2000.0);
    device.weight = 300.0;
    device.run(60);
    let told = device.governor.told(at_us(device.now_us));
    assert_eq!(told.allowed, MIB);
    let (with, without) = told.p99_us.unwrap();
    assert!(with > without * 3 / 2, "{told:?}");
    assert!(device.run(600) <= 1.2 * MIB as f64);
}

/// The background costs others nothing, and they are late at times all the same: how many are late together, and in
/// which slot, is chance. A governor that takes that for harm would go to the floor.
#[test]
fn chance_does_not_stop_it() {
    for (seed, foreground, hiccups) in [(1, 60.0, 0), (2, 1000.0, 0), (3, 1000.0, 1), (4, 300.0, 3)]
    {
        let mut device = Device::new(seed, foreground, 2.0 * foreground);
        device.weight = 0.0;
        device.hiccups = hiccups;
        let (mut halved, mut last) = (0, MIB);
        for _ in 0..1200 {
            device.run(1);
            let allowed = device.governor.told(at_us(device.now_us)).allowed;
            halved += u32::from(allowed < last);
            last = allowed;
        }
        // 1200 seconds have up to 240 epochs.
        assert!(halved <= 20, "{seed}: {halved}");
        let mean = device.run(600);
        assert!(mean > 128.0 * MIB as f64, "{seed}: {mean:.0}, {halved}");
    }
}

/// Few requests: what is below the bound looks like harm now and then, what is far above it is seen.
#[test]
fn few_requests_say_enough() {
    let mut device = Device::new(8, 40.0, 80.0);
    device.weight = 10.0;
    device.run(3000);
    let (mean, ideal) = (device.run(6000), device.ideal());
    assert!(ideal < MIB as f64);
    assert!(mean < 6.0 * MIB as f64, "{mean:.0} of {ideal:.0}");
}

/// What never ends gives no slot without: that is seen, too.
#[test]
fn what_is_always_under_way_is_slowed_down() {
    let mut device = Device::new(9, 1000.0, 2000.0);
    device.weight = 0.0;
    device.run(300);
    let before = device.governor.told(at_us(device.now_us)).allowed;
    assert!(before > 16 * MIB);
    device.governor.begins();
    device.run(130);
    let after = device.governor.told(at_us(device.now_us)).allowed;
    assert!(after <= before / 2, "{after} of {before}");
}

#[test]
fn an_idle_background_gains_nothing() {
    let mut governor = Governor::new(bound(), 1);
    let mut now = Instant(1);
    for _ in 0..60_000 {
        now = now + Duration::from_millis(1);
        let arrival = governor.arrives(now);
        governor.answered(now + Duration::from_micros(300), arrival);
    }
    assert_eq!(governor.told(now).allowed, MIB);
}

proptest! {
    /// Whatever comes in whatever order: between floor and most, and held back for two slots at the most.
    #[test]
    fn bounds(
        seed: u64,
        steps in proptest::collection::vec((0u8..5, 0u64..400_000, 0u64..200 * MIB), 1..2000),
    ) {
        let mut governor = Governor::new(bound(), seed);
        let (mut now_us, mut open) = (0, Vec::new());
        for (what, later, bytes) in steps {
            now_us += later / 100;
            let now = at_us(now_us);
            match what {
                0 | 1 => open.push(governor.arrives(now)),
                2 => drop(open.pop().map(|arrival| governor.answered(now, arrival))),
                3 => governor.begins(),
                _ => governor.ended(now, bytes),
            }
            let allowed = governor.told(now).allowed;
            prop_assert!((MIB..=256 * MIB).contains(&allowed));
            if let Some(until) = governor.holds(now) {
                prop_assert!(until > now && until.since(now) <= SLOT * 2);
                prop_assert_eq!(governor.holds(until), None);
            }
        }
    }
}

//! A disk that may lose power.
//!
//! The fault model, in prose. A sector is 512 bytes and is never torn itself.
//! - With a volatile cache, a completed write is durable only when a flush that was *handed out after it
//!   completed* has completed, or when it was handed out as durable and completed. Without one, a completed
//!   write is durable.
//! - When power fails, each sector of every write that is not durable, completed or in flight, survives
//!   or not on its own: after a crash a sector holds its last durable content, or that of any later write.
//! - When only the process dies, completed writes stay; sectors of writes in flight land or not.
//! - A *forgetful* disk drops, when a flush or a durable write fails, whatever that was to make durable, and
//!   goes on to show it: later flushes succeed and do not make it durable. Only writing it again does.
//! - Any sector may become unreadable, and any bit may rot; a write may land elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

/// Numbers from a seed (splitmix64).
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Versions of a sector that power loss may leave: the durable one first, each with when it completed.
type Versions = Vec<(u64, Vec<u8>)>;

#[derive(Clone)]
pub struct Disk {
    /// Pages that were ever written; a copy of the disk shares them.
    pages: BTreeMap<u64, Rc<[u8; PAGE as usize]>>,
    pub size: u64,
    pub volatile: bool,
    /// Calls durable what is not.
    pub lying: bool,
    /// Shows, after a failure, what it has dropped.
    pub forgetful: bool,
    /// Only sectors with something that is not durable.
    loose: BTreeMap<u64, Versions>,
    /// Sectors whose content was dropped and is shown all the same: what is durable there.
    dropped: BTreeMap<u64, Vec<u8>>,
    pub clock: u64,
    pub bad: BTreeSet<u64>,
}

impl Disk {
    pub fn new(size: u64, volatile: bool) -> Disk {
        Disk {
            pages: BTreeMap::new(),
            size,
            volatile,
            lying: false,
            forgetful: false,
            loose: BTreeMap::new(),
            dropped: BTreeMap::new(),
            clock: 1,
            bad: BTreeSet::new(),
        }
    }

    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), i32> {
        let end = offset + buf.len() as u64;
        if end > self.size {
            return Err(5);
        }
        if self
            .bad
            .range(offset / SECTOR..end.div_ceil(SECTOR))
            .next()
            .is_some()
        {
            return Err(5);
        }
        self.peek(offset, buf);
        Ok(())
    }

    /// What stands there, read without the device noticing.
    pub fn peek(&self, offset: u64, buf: &mut [u8]) {
        let mut at = offset;
        let mut done = 0;
        while done < buf.len() {
            let from = (at % PAGE) as usize;
            let len = (PAGE as usize - from).min(buf.len() - done);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => buf[done..done + len].copy_from_slice(&page[from..from + len]),
                None => buf[done..done + len].fill(0),
            }
            done += len;
            at += len as u64;
        }
    }

    /// Where some page is that was ever written.
    #[allow(dead_code, reason = "the simulator of whole clusters asks")]
    pub fn some_page(&self, rng: &mut Rng) -> Option<u64> {
        let nth = rng.below(self.pages.len() as u64) as usize;
        self.pages.keys().nth(nth).map(|page| page * PAGE)
    }

    /// Puts bytes there, without the device noticing.
    pub fn poke(&mut self, offset: u64, mut data: &[u8]) {
        let mut at = offset;
        while !data.is_empty() {
            let from = (at % PAGE) as usize;
            let len = (PAGE as usize - from).min(data.len());
            let page = self
                .pages
                .entry(at / PAGE)
                .or_insert_with(|| Rc::new([0; PAGE as usize]));
            Rc::make_mut(page)[from..from + len].copy_from_slice(&data[..len]);
            data = &data[len..];
            at += len as u64;
        }
    }

    /// First byte of the last block that begins with these.
    pub fn find(&self, bytes: &[u8], block: u64) -> Option<u64> {
        let start = &bytes[..bytes.len().min(block as usize)];
        let mut seen = vec![0; start.len()];
        let blocks = self
            .pages
            .keys()
            .flat_map(|page| (0..PAGE / block).map(move |i| page * PAGE + i * block));
        let mut found = blocks.rev().filter(|at| {
            self.peek(*at, &mut seen);
            seen == start
        });
        found.next()
    }

    fn sectors(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        assert!(
            offset.is_multiple_of(SECTOR) && (len as u64).is_multiple_of(SECTOR),
            "aligned"
        );
        (0..len as u64 / SECTOR).map(move |i| {
            let from = (i * SECTOR) as usize;
            (offset / SECTOR + i, from..from + SECTOR as usize)
        })
    }

    fn sector(&self, sector: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        self.peek(sector * SECTOR, &mut bytes);
        bytes
    }

    /// The write completes.
    pub fn write(&mut self, offset: u64, data: &[u8], durable: bool) {
        self.clock += 1;
        for (sector, range) in Disk::sectors(offset, data.len()) {
            let shown = self.sector(sector);
            let old = self.dropped.remove(&sector).unwrap_or(shown);
            let new = &data[range];
            if !self.lying && (durable || !self.volatile) {
                self.loose.remove(&sector);
            } else {
                let versions = self.loose.entry(sector).or_insert_with(|| vec![(0, old)]);
                versions.push((self.clock, new.to_vec()));
            }
            // Writing a bad sector heals it.
            self.bad.remove(&sector);
            self.poke(sector * SECTOR, new);
        }
    }

    /// A flush that was handed out at `since` completes.
    pub fn flush(&mut self, since: u64) {
        if self.lying {
            return;
        }
        self.loose.retain(|_, versions| {
            let covered = versions
                .iter()
                .rposition(|(at, _)| *at <= since)
                .unwrap_or(0);
            versions.drain(..covered);
            versions.len() > 1
        });
    }

    /// A flush fails.
    pub fn flush_failed(&mut self) {
        if self.forgetful {
            for (sector, versions) in std::mem::take(&mut self.loose) {
                self.dropped.insert(sector, versions[0].1.clone());
            }
        }
    }

    /// A write fails: it may have got anywhere.
    pub fn write_failed(&mut self, offset: u64, data: &[u8], rng: &mut Rng) {
        self.kill(&[(offset, data.to_vec())], rng);
        if !self.forgetful {
            return;
        }
        for (sector, _) in Disk::sectors(offset, data.len()) {
            if let Some(versions) = self.loose.remove(&sector) {
                self.dropped.insert(sector, versions[0].1.clone());
            }
        }
    }

    /// What is shown there is dropped: this is durable.
    pub fn drop_shown(&mut self, offset: u64, durable: &[u8]) {
        for (sector, range) in Disk::sectors(offset, durable.len()) {
            self.dropped.insert(sector, durable[range].to_vec());
        }
    }

    /// Sectors that are shown, and are not what is durable.
    pub fn dropped(&self) -> usize {
        self.dropped.len()
    }

    /// Power fails while these writes are in flight.
    pub fn power_off(&mut self, flying: &[(u64, Vec<u8>)], rng: &mut Rng) {
        self.loosen(flying);
        // Mostly all or nothing of what is loose, sometimes each for itself.
        let percent = [0, 10, 50, 90, 100][rng.below(5) as usize];
        self.settle_loose(|_, versions| {
            if rng.chance(percent) {
                1 + rng.below(versions as u64 - 1) as usize
            } else {
                0
            }
        });
    }

    /// Writes in flight may be on the disk from now on.
    pub fn loosen(&mut self, flying: &[(u64, Vec<u8>)]) {
        for (offset, data) in flying {
            for (sector, range) in Disk::sectors(*offset, data.len()) {
                let shown = self.sector(sector);
                let old = self.dropped.remove(&sector).unwrap_or(shown);
                let versions = self.loose.entry(sector).or_insert_with(|| vec![(0, old)]);
                versions.push((self.clock, data[range].to_vec()));
            }
        }
    }

    /// Sectors that are not durable.
    pub fn loose(&self) -> usize {
        self.loose.len()
    }

    /// Power is off: of the `i`-th loose sector, with so many versions, this one is left.
    pub fn settle_loose(&mut self, mut pick: impl FnMut(usize, usize) -> usize) {
        for (sector, durable) in std::mem::take(&mut self.dropped) {
            self.poke(sector * SECTOR, &durable);
        }
        for (i, (sector, versions)) in std::mem::take(&mut self.loose).into_iter().enumerate() {
            let pick = pick(i, versions.len());
            self.poke(sector * SECTOR, &versions[pick].1);
        }
    }

    /// The process dies while these writes are in flight; the cache lives on.
    pub fn kill(&mut self, flying: &[(u64, Vec<u8>)], rng: &mut Rng) {
        for (offset, data) in flying {
            let percent = [0, 50, 100][rng.below(3) as usize];
            for (sector, range) in Disk::sectors(*offset, data.len()) {
                if rng.chance(percent) {
                    let data = data[range].to_vec();
                    self.write(sector * SECTOR, &data, false);
                }
            }
        }
    }

    /// Overwrites without a trace.
    pub fn rot(&mut self, offset: u64, data: &[u8]) {
        self.poke(offset, data);
        let sectors = offset / SECTOR..(offset + data.len() as u64).div_ceil(SECTOR);
        for sector in sectors {
            self.loose.remove(&sector);
            self.dropped.remove(&sector);
        }
    }
}

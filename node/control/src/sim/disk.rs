//! A disk under redb, which can lose power.
//!
//! Invariants:
//! - what was written before a flush is there after it, whatever happens; of what was not flushed each sector is there
//!   after a loss of power, or not;
//! - a disk that has lost power, or whose process has ended, takes nothing any more: who still holds it hears errors.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;

use crate::types::Entry;

const SECTOR: usize = 512;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Killed: what it has written stands in the kernel's cache.
    Killed,
    /// With the machine.
    Power,
}

#[derive(Debug)]
struct Platter {
    /// What is there after a loss of power.
    safe: Vec<u8>,
    /// What is read.
    seen: Vec<u8>,
    /// What was written since the last flush: where, and how many bytes.
    loose: Vec<(usize, usize)>,
    dead: bool,
    /// Writes and flushes until power fails.
    left: Option<u32>,
    lies: bool,
    /// Whether the file has its name; if not, one that has none is begun anew.
    named: bool,
    slow: bool,
    chance: StdRng,
}

/// Entries that were applied, by whichever member; and what was applied twice, and not the same.
#[derive(Debug, Default)]
pub(crate) struct Agreed {
    pub(crate) entries: BTreeMap<u64, Entry>,
    pub(crate) twice: Option<(Entry, Entry)>,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    platter: Arc<Mutex<Platter>>,
    agreed: Arc<Mutex<Agreed>>,
}

impl Disk {
    /// An empty one.
    pub(crate) fn new(seed: u64, agreed: &Arc<Mutex<Agreed>>) -> Disk {
        Disk::with(Vec::new(), StdRng::seed_from_u64(seed), agreed)
    }

    fn with(bytes: Vec<u8>, chance: StdRng, agreed: &Arc<Mutex<Agreed>>) -> Disk {
        let agreed = agreed.clone();
        let platter = Arc::new(Mutex::new(Platter {
            safe: bytes.clone(),
            seen: bytes,
            loose: Vec::new(),
            dead: false,
            left: None,
            lies: false,
            named: false,
            slow: false,
            chance,
        }));
        Disk { platter, agreed }
    }

    /// A member applies these entries: so they were agreed on.
    pub(crate) fn agreed(&self, entries: &[Entry]) {
        let mut agreed = self.agreed.lock().unwrap();
        for entry in entries {
            let known = agreed.entries.entry(entry.log_id.index);
            let known = known.or_insert_with(|| entry.clone());
            if known.log_id != entry.log_id || known.payload != entry.payload {
                let known = known.clone();
                agreed.twice.get_or_insert((known, entry.clone()));
            }
        }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap()
    }

    /// Ends the process; what stands on the disk then, on one that works.
    pub(crate) fn after(&self, end: End) -> Disk {
        let mut platter = self.platter();
        platter.dead = true;
        let mut chance = StdRng::seed_from_u64(platter.chance.r#gen());
        let bytes = match end {
            End::Killed => platter.seen.clone(),
            End::Power => {
                let mut bytes = platter.safe.clone();
                for (at, len) in &platter.loose {
                    let (mut from, end) = (*at, at + len);
                    while from < end {
                        let to = end.min((from / SECTOR + 1) * SECTOR);
                        // A later write may have been shortened away with the file.
                        if chance.r#gen() && to <= platter.seen.len() {
                            bytes.resize(bytes.len().max(to), 0);
                            bytes[from..to].copy_from_slice(&platter.seen[from..to]);
                        }
                        from = to;
                    }
                }
                bytes
            }
        };
        let bytes = if platter.named { bytes } else { Vec::new() };
        let next = Disk::with(bytes, chance, &self.agreed);
        {
            let mut next = next.platter();
            (next.lies, next.named) = (platter.lies, platter.named);
        }
        next
    }

    /// Whether the file has its name.
    pub(crate) fn has_name(&self) -> bool {
        self.platter().named
    }

    /// It gets its name, and the directory is flushed; whether there was power for that.
    pub(crate) fn give_name(&self) -> bool {
        let mut platter = self.platter();
        platter.named = platter.named || platter.step().is_ok();
        platter.named
    }

    /// Power fails with so many more writes and flushes.
    pub(crate) fn fail_after(&self, steps: u32) {
        self.platter().left = Some(steps);
    }

    /// Power does not fail.
    pub(crate) fn steady(&self) {
        self.platter().left = None;
    }

    /// From now on flushes are forgotten, which no disk may do.
    pub(crate) fn lie(&self) {
        self.platter().lies = true;
    }

    /// Whether it takes seconds for everything.
    pub(crate) fn slow(&self, slow: bool) {
        self.platter().slow = slow;
    }

    /// Whether it has lost power.
    pub(crate) fn is_dead(&self) -> bool {
        self.platter().dead
    }

    /// Does what takes the disk some time; who asked for it may be gone before it is begun, or before it is known.
    pub(crate) async fn at_work<T>(&self, work: impl FnOnce() -> T) -> T {
        tokio::time::sleep(self.pause()).await;
        let done = work();
        tokio::time::sleep(self.pause()).await;
        done
    }

    fn pause(&self) -> Duration {
        let mut platter = self.platter();
        let most = if platter.slow { 3000 } else { 8 };
        Duration::from_millis(platter.chance.gen_range(0..=most))
    }
}

impl Platter {
    /// One step; an error once there is no power.
    fn step(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => self.dead = true,
            }
        }
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("there is no power"));
        }
        Ok(())
    }
}

fn place(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let platter = self.platter();
        platter.alive()?;
        Ok(platter.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        platter.alive()?;
        let from = place(offset);
        let found = platter.seen.get(from..from + out.len());
        let found = found.ok_or_else(|| io::Error::other("beyond the end of the file"))?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        // A file's length is the file system's, which keeps a journal.
        platter.seen.resize(place(len), 0);
        platter.safe.resize(place(len), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        if !platter.lies {
            let Platter {
                safe, seen, loose, ..
            } = &mut *platter;
            for (at, len) in loose.drain(..) {
                let end = (at + len).min(seen.len());
                if at < end {
                    safe[at..end].copy_from_slice(&seen[at..end]);
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        let from = place(offset);
        let to = from + data.len();
        let room = platter.seen.get_mut(from..to);
        let room = room.ok_or_else(|| io::Error::other("beyond the end of the file"))?;
        room.copy_from_slice(data);
        platter.loose.push((from, data.len()));
        Ok(())
    }
}

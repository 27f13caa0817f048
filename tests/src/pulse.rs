//! What the machine's disk does while a rig runs on it: the store cannot be faster than that.
//!
//! A thread of its own writes a block durably, again and again, and keeps when each was done. Where the store stood
//! still and the disk did so too, in the same moment, the store is not to blame.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::OFlags;

use crate::history::{Clock, gap};
use crate::rig;

/// The block that is written.
const BLOCK: usize = 4096;
/// What is left to the store in between.
const PAUSE: Duration = Duration::from_millis(2);

/// A disk that is written to.
pub struct Pulse {
    over: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<u64>>>,
}

/// When a disk was done with each block.
#[derive(Debug)]
pub struct Beats(Vec<u64>);

fn beat(file: &File, clock: &Clock, over: &AtomicBool) -> io::Result<Vec<u64>> {
    let block = [7; BLOCK];
    let mut beats = Vec::new();
    while !over.load(Ordering::Relaxed) {
        file.write_all_at(&block, 0)?;
        beats.push(clock.now());
        rig::pause(PAUSE);
    }
    Ok(beats)
}

impl Pulse {
    /// Begins to write to a new file in `folder`.
    pub fn start(folder: &Path, clock: Clock) -> Pulse {
        let file = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true);
            options.custom_flags(OFlags::DSYNC.bits().cast_signed());
            options.open(folder.join("pulse"))
        };
        let file = file().unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let thread = std::thread::spawn(move || beat(&file, &clock, &ends));
        Pulse { over, thread }
    }

    /// Ends, and says how it was.
    pub fn end(self) -> Beats {
        self.over.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(Ok(beats)) => Beats(beats),
            Ok(Err(e)) => panic!("the disk does not take a block: {e}"),
            Err(_) => panic!("who writes to the disk panicked"),
        }
    }
}

impl Beats {
    /// For how long the disk did not finish a block, at the longest, within this time or around it.
    pub fn stood_still(&self, from: u64, to: u64) -> (u64, u64) {
        gap(&self.0, from, to)
    }

    /// How often, and for how long, it took more than `bound` nanoseconds for a block.
    pub fn stalls(&self, bound: u64) -> String {
        let between = self.0.windows(2).map(|two| two[1] - two[0]);
        let mut longer: Vec<u64> = between.filter(|span| *span > bound).collect();
        longer.sort_unstable();
        let ms = |nanos: Option<&u64>| nanos.map_or(0.0, |nanos| *nanos as f64 / 1e6);
        format!(
            "the disk itself stood still {} times for more than {:.0} ms: {:.1} ms in the middle, {:.1} ms at the longest",
            longer.len(),
            ms(Some(&bound)),
            ms(longer.get(longer.len() / 2)),
            ms(longer.last())
        )
    }
}

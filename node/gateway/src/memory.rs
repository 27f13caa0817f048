//! The memory for bodies on their way, in shares.
//!
//! Invariants:
//! - small bodies have a part of it for themselves: however long large ones stay, and however many wait for their turn,
//!   small ones pass;
//! - one peer has three quarters of either part at the most, however slow its bodies are;
//! - who waits for a share waits a bounded time, and holds nothing of the store's meanwhile;
//! - a body that is on its way slower than a least rate is given up. While others wait for a share like the one that it
//!   has, that rate is a higher one: some who are slow on purpose do not keep all others out.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ashlar_cluster_s3::refusal::{Code, Refusal};
use tokio::time::Instant;

use crate::faults::refused;
use crate::gateway::timeout;
use crate::places::{Peer, Place, Places};

/// Mebibytes that a small body takes.
const SMALL_SHARE: u32 = 1;
/// Mebibytes that a large one takes: the stripes that it has on their way, parity included.
const LARGE_SHARE: u32 = 24;
/// Bytes above which a body is a large one.
const LARGE: u64 = 1024 * 1024;
/// Bytes a second that a body has to move, at the least.
const RATE_MIN: u64 = 1024;
/// The same while others wait: a small body that is not whole after a minute is slower than this.
const RATE_WANTED: u64 = 16 * 1024;

/// A share, until it is dropped.
pub(crate) type Share = Place;

/// Which memory a body is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// None: it is no body that anybody waits for.
    None,
    Small,
    Large,
}

impl Class {
    pub(crate) fn of(bytes: u64) -> Class {
        match bytes {
            0 => Class::None,
            _ if bytes > LARGE => Class::Large,
            _ => Class::Small,
        }
    }
}

/// A share that was waited for while nothing was open that it could be of.
#[derive(Debug, Default)]
pub(crate) struct Waited(Option<(Class, Share)>);

/// The class of what a connection sends now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sends(Arc<AtomicU8>);

impl Sends {
    pub(crate) fn set(&self, class: Class) {
        self.0.store(class as u8, Ordering::Relaxed);
    }

    fn get(&self) -> Class {
        match self.0.load(Ordering::Relaxed) {
            1 => Class::Small,
            2 => Class::Large,
            _ => Class::None,
        }
    }
}

/// The memory.
#[derive(Debug)]
pub(crate) struct Memory {
    small: Places,
    large: Places,
    /// What a large body takes of a memory of this size.
    large_share: u32,
    wait: Duration,
    /// When somebody last did not get the share of a small body at once, and that of a large one.
    wanted: Mutex<[Option<Instant>; 2]>,
}

impl Memory {
    /// So many mebibytes, for which anybody waits so long.
    pub(crate) fn new(mib: u32, wait: Duration) -> Memory {
        let small = (mib / 4).max(SMALL_SHARE);
        let large = mib.saturating_sub(small).max(1);
        Memory {
            small: Places::new(small as usize),
            large: Places::new(large as usize),
            large_share: LARGE_SHARE.min(large),
            wait,
            wanted: Mutex::default(),
        }
    }

    fn of(&self, class: Class) -> (&Places, u32) {
        match class {
            Class::Large => (&self.large, self.large_share),
            Class::Small | Class::None => (&self.small, SMALL_SHARE),
        }
    }

    /// The share of a peer's body of so many bytes, if there is one at once. What large ones leave is for small ones,
    /// too.
    pub(crate) fn share_now(&self, peer: Peer, bytes: u64) -> Option<Share> {
        let class = Class::of(bytes);
        let (of, share) = self.of(class);
        let found = of.take_now(peer, share);
        let found = found.or_else(|| match class {
            Class::Large => None,
            _ => self.large.take_now(peer, SMALL_SHARE),
        });
        // Of those who wait for their own part, too: many may be behind one address.
        if found.is_none() {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            wanted[usize::from(class == Class::Large)] = Some(Instant::now());
        }
        found
    }

    /// The share of a body of so many bytes; waits for it, but not for ever.
    pub(crate) async fn share(&self, peer: Peer, bytes: u64) -> Result<Share, Refusal> {
        if let Some(share) = self.share_now(peer, bytes) {
            return Ok(share);
        }
        let (of, share) = self.of(Class::of(bytes));
        match timeout(self.wait, of.take(peer, share)).await {
            Some(Some(share)) => Ok(share),
            _ => refused(Code::SlowDown, "Please reduce your request rate."),
        }
    }

    /// The share of a body of so many bytes, if there is one at once, or one like it was waited for.
    pub(crate) fn share_of(&self, peer: Peer, bytes: u64, waited: &mut Waited) -> Option<Share> {
        let class = Class::of(bytes);
        let like = waited.0.take().filter(|(of, _)| *of == class);
        like.map_or_else(|| self.share_now(peer, bytes), |(_, share)| Some(share))
    }

    /// Waits for the share of a body of so many bytes, which is opened again then: it may be another one by that time.
    pub(crate) async fn wait(
        &self,
        peer: Peer,
        bytes: u64,
        waited: &mut Waited,
    ) -> Result<(), Refusal> {
        waited.0 = Some((Class::of(bytes), self.share(peer, bytes).await?));
        Ok(())
    }

    /// Bytes a second that a body had to move, at the least, in a stretch of time that ends now.
    fn least(&self, class: Class, now: Instant, stretch: Duration) -> u64 {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match class {
            Class::None => None,
            class => wanted[usize::from(class == Class::Large)],
        };
        match at {
            // Nobody waits longer than that, and who is told to slow down comes back.
            Some(at) if now.saturating_duration_since(at) <= 2 * stretch => RATE_WANTED,
            _ => RATE_MIN,
        }
    }
}

/// How a body moves. Only the time counts in which it was waited for.
#[derive(Debug)]
pub(crate) struct Pace {
    memory: Arc<Memory>,
    /// Which of it the body takes.
    of: Sends,
    /// How long it may stand still: in as long a time it has to move so fast.
    stretch: Duration,
    /// Since when it is being waited for.
    since: Option<Instant>,
    /// How long it was, and what moved, in the stretch of time that is looked at.
    waited: Duration,
    bytes: u64,
}

impl Pace {
    pub(crate) fn new(memory: Arc<Memory>, stretch: Duration, of: Sends) -> Pace {
        Pace {
            memory,
            of,
            stretch,
            since: None,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// How long it may stand still.
    pub(crate) fn stretch(&self) -> Duration {
        self.stretch
    }

    /// It is waited for.
    pub(crate) fn wait(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// So many bytes moved. False if too few did in as long a time as a body may stand still.
    pub(crate) fn moved(&mut self, bytes: usize, now: Instant) -> bool {
        let waited = self.since.take().map(|since| now.duration_since(since));
        self.waited += waited.unwrap_or_default();
        self.bytes += bytes as u64;
        if self.waited < self.stretch {
            return true;
        }
        let least = self.memory.least(self.of.get(), now, self.waited);
        let enough = self.bytes >= self.waited.as_secs().saturating_mul(least);
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRETCH: Duration = Duration::from_secs(60);

    fn memory(mib: u32) -> Arc<Memory> {
        Arc::new(Memory::new(mib, Duration::ZERO))
    }

    /// Whether a body is kept of which these pieces come, each after so many milliseconds.
    fn keeps(memory: &Arc<Memory>, pieces: &[(u64, usize)]) -> bool {
        keeps_of(Class::Large, memory, pieces)
    }

    fn pace(memory: &Arc<Memory>, class: Class) -> Pace {
        let of = Sends::default();
        of.set(class);
        Pace::new(memory.clone(), STRETCH, of)
    }

    fn keeps_of(class: Class, memory: &Arc<Memory>, pieces: &[(u64, usize)]) -> bool {
        let mut pace = pace(memory, class);
        let mut now = Instant::now();
        pieces.iter().all(|(millis, bytes)| {
            pace.wait(now);
            now += Duration::from_millis(*millis);
            pace.moved(*bytes, now)
        })
    }

    fn peer(nth: u8) -> Peer {
        Peer::from(std::net::SocketAddr::from(([10, 0, 0, nth], 1)))
    }

    /// All shares of a body of so many bytes, for two peers.
    fn all(memory: &Memory, bytes: u64) -> Vec<Share> {
        let of = |nth| std::iter::from_fn(move || memory.share_now(peer(nth), bytes));
        of(1).chain(of(2)).collect()
    }

    #[tokio::test]
    async fn small_ones_pass_whoever_waits() {
        let memory = memory(1024);
        let mut large = all(&memory, LARGE + 1);
        assert_eq!(large.len(), 32);
        let refused = memory.share(peer(3), LARGE + 1).await;
        assert_eq!(refused.map(drop).map_err(|r| r.code), Err(Code::SlowDown));
        let waits = memory.clone();
        let waits = tokio::spawn(async move { waits.share(peer(3), LARGE + 1).await.is_ok() });
        let small = all(&memory, LARGE);
        assert_eq!(small.len(), 256, "and nothing that somebody waits for");
        assert!(!waits.await.unwrap());
        drop(large.pop());
        assert!(memory.share(peer(3), LARGE + 1).await.is_ok());
    }

    #[tokio::test]
    async fn nobody_has_all_of_it() {
        let memory = memory(1024);
        let of_one = |bytes| -> Vec<Share> {
            std::iter::from_fn(|| memory.share_now(peer(1), bytes)).collect()
        };
        let large = of_one(LARGE + 1);
        assert_eq!(large.len(), 24);
        let refused = memory.share(peer(1), LARGE + 1).await;
        assert_eq!(refused.map(drop).map_err(|r| r.code), Err(Code::SlowDown));
        assert!(memory.share_now(peer(2), LARGE + 1).is_some());
        let small = of_one(1);
        assert_eq!(small.len(), 192);
        assert!(memory.share_now(peer(2), 1).is_some());
        // And one who waits for what is behind its own address is not kept waiting by who is slow there.
        let slow = [(30_000, 200_000), (30_000, 200_000)];
        assert!(!keeps(&memory, &slow));
    }

    #[tokio::test]
    async fn what_was_waited_for_is_for_a_body_like_that() {
        let memory = memory(8);
        let mut waited = Waited::default();
        memory.wait(peer(1), LARGE + 1, &mut waited).await.unwrap();
        assert!(memory.share_now(peer(2), LARGE + 1).is_none());
        let share = memory.share_of(peer(1), LARGE + 2, &mut waited);
        assert_eq!((share.is_some(), memory.large.free()), (true, 0));
        drop(share);
        // One of another length is counted by its own.
        memory.wait(peer(1), 1, &mut waited).await.unwrap();
        let share = memory.share_of(peer(1), LARGE + 1, &mut waited);
        assert_eq!((share.is_some(), memory.large.free()), (true, 0));
        assert_eq!(memory.small.free(), 2);
    }

    #[test]
    fn there_is_a_share_for_each_in_the_smallest_memory() {
        for mib in 0..60 {
            let memory = memory(mib);
            assert!(memory.share_now(peer(1), 1).is_some(), "{mib}");
            assert!(memory.share_now(peer(1), u64::MAX).is_some(), "{mib}");
        }
    }

    #[test]
    fn bodies_that_move_too_slowly() {
        let memory = memory(8);
        assert!(keeps(&memory, &[(1000, 1024); 1000]));
        assert!(!keeps(&memory, &[(1000, 512); 1000]));
        // A byte in time for the timer, each time.
        assert!(!keeps(&memory, &[(59_000, 1); 2]));
        // What moved once does not help for ever.
        let later = [(1000, 1 << 30), (59_000, 1), (30_000, 1), (30_000, 1)];
        assert!(!keeps(&memory, &later));
        // A break, and then it goes on.
        let on = [(1000, 100_000), (50_000, 100_000)];
        assert!(keeps(&memory, &[on, on].concat()));
        // A short body may be slow.
        assert!(keeps(&memory, &[(20_000, 1), (20_000, 1)]));
    }

    #[test]
    fn time_in_which_nobody_waits_does_not_count() {
        let (mut pace, mut now) = (pace(&memory(8), Class::Small), Instant::now());
        for _ in 0..100 {
            now += STRETCH;
            assert!(pace.moved(1, now));
        }
    }

    #[test]
    fn it_has_to_move_faster_while_others_wait() {
        let memory = memory(8);
        let slow = [(30_000, 200_000), (30_000, 200_000)];
        let fast = [(30_000, 2_000_000), (30_000, 2_000_000)];
        assert!(keeps(&memory, &slow));
        let _share = memory.share_now(peer(1), u64::MAX);
        assert!(memory.share_now(peer(2), u64::MAX).is_none());
        assert!(!keeps(&memory, &slow));
        assert!(keeps(&memory, &fast));
        // Others than those for whose memory somebody waits may be slow.
        assert!(keeps_of(Class::Small, &memory, &slow));
        let small = all(&memory, 1);
        assert_eq!(small.len(), 2);
        assert!(memory.share_now(peer(3), 1).is_none());
        assert!(!keeps_of(Class::Small, &memory, &slow));
        assert!(keeps_of(Class::None, &memory, &slow));
    }
}

//! What a model allows: its bounds, and what its clients want.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashlar_cluster_journal::{Config, Limits};
use ashlar_layout::ids::{DeviceNo, PartitionId};

use crate::client::Wish;
use crate::memo::Memo;

/// Things that must happen somewhere in a model: one in which they do not shows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Seen {
    /// A change was committed and its client told.
    Commit,
    /// Another head took office.
    Election,
    /// Two sought the next reign at once.
    Race,
    /// A replica removed entries of its log.
    Truncation,
    /// A replica restarted with less than it had been given.
    LostTail,
    /// A durable record could not be read any more.
    Rot,
    /// A change was refused because of what it must find.
    Refusal,
    /// A change was done once although it was sent more than once.
    Retry,
    /// A proposal for an earlier reign arrived and was refused.
    Stray,
    /// A head in office was beyond its lease.
    Fenced,
    /// Two at once believed to be in office.
    TwoHeads,
    /// Witnesses allowed a cached read,
    CachedRead,
    /// or did not,
    CachedMiss,
    /// or did not know.
    Ignorant,
    /// The chain's composition changed, wholly.
    Change,
    /// Two reigns changed it at once, from the same composition.
    ChangeRace,
    /// A composition was taken back.
    ChangeUndone,
    /// A replica was left out and knows it.
    Retired,
    /// A message arrived twice.
    Repeat,
    /// A replica was taught what it lacked, and the log of its head had forgotten.
    Lesson,
}

impl Seen {
    /// All of them.
    pub const ALL: [Seen; 20] = [
        Seen::Commit,
        Seen::Election,
        Seen::Race,
        Seen::Truncation,
        Seen::LostTail,
        Seen::Rot,
        Seen::Refusal,
        Seen::Retry,
        Seen::Stray,
        Seen::Fenced,
        Seen::TwoHeads,
        Seen::CachedRead,
        Seen::CachedMiss,
        Seen::Ignorant,
        Seen::Change,
        Seen::ChangeRace,
        Seen::ChangeUndone,
        Seen::Retired,
        Seen::Repeat,
        Seen::Lesson,
    ];
}

/// What happened before a model begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// The chain runs quietly.
    Quiet,
    /// Two reigns left an entry each at the same place, on one device each: the first head's, and
    /// that of the second one, whose process does not run. Nothing of either is committed.
    TwoTails,
    /// The first client's first request is committed, by the head and the second replica; the third
    /// has heard nothing of it, and the client has given up.
    Half,
    /// The second replica seeks the next reign, and has the third one's promise.
    Promised,
    /// The same, that head is in office by it, and both have written their indexes out; the old one has heard
    /// nothing of all that.
    Overtaken,
    /// The spare has learned, and the head has just written the first new composition. Readers remember
    /// what they looked up before.
    Begun,
    /// The same, and those of the old composition are cut off from the head before they hear of it; they
    /// know of a newer wish of the cluster map, if there is one.
    Torn,
    /// The same, and they have another head.
    Racing,
    /// The third replica was away while a change was made, and the others have forgotten what it lacks; it is
    /// back, and has heard nothing yet.
    Away,
}

/// The model's bounds and its clients' scripts.
#[derive(Debug)]
pub struct Plan {
    /// What it is called.
    pub name: &'static str,
    /// Replicas, spares included.
    pub nodes: usize,
    /// How many of them, from the first, are the chain at first.
    pub founders: usize,
    /// One step of time.
    pub quantum: Duration,
    /// So many of them.
    pub ticks: u8,
    /// Processes that end.
    pub crashes: u8,
    /// Those that may: a bit each.
    pub victims: u8,
    /// Whether what a process said last may be lost with it.
    pub crash_loses: bool,
    /// Crashes after which the last durable record cannot be read: of one device, the first victim's.
    pub rots: u8,
    /// Connections that break.
    pub breaks: u8,
    /// Messages that are dropped.
    pub drops: u8,
    /// Messages that arrive twice.
    pub repeats: u8,
    /// Times that a replica is paused while it has something to do, and another goes on; nothing: whoever
    /// has something to do may be the next one, always.
    pub pauses: Option<u8>,
    /// Attempts that clients give up although nothing is known to have happened.
    pub give_ups: u8,
    /// Whether a proposal may take its time.
    pub late: bool,
    /// Attempts for each request, at most.
    pub attempts: u8,
    /// Whether acknowledgements arrive at once, unless something is before them on the way.
    pub prompt_acks: bool,
    /// Whether writes take their time: else they are durable at once.
    pub slow_disks: bool,
    /// Whether what goes into an index is written out at once, and forgotten of the log.
    pub forgets: bool,
    /// Whether it is the index, and with it what the log has forgotten, that a device loses.
    pub loses_index: bool,
    /// And all else on it: it is formatted anew, under its old number.
    pub formats: bool,
    /// Whether an index waits for its device: else what it wants is done at once.
    pub slow_index: bool,
    /// How many reigns there may be after the first.
    pub rounds: u32,
    /// What each client wants, in order.
    pub wishes: Vec<Vec<Wish>>,
    /// The keys that are looked up.
    pub keys: Vec<&'static str>,
    /// Clients that read by witnesses, and how often.
    pub readers: usize,
    /// See `readers`.
    pub reads: u8,
    /// Whether several entries may be in one message.
    pub batches: bool,
    /// What happened before.
    pub past: Past,
    /// For so many quanta nothing was heard of anyone when the model begins.
    pub silence: u8,
    /// What the cluster map wants the chain to be, one after the other.
    pub desired: Vec<Vec<DeviceNo>>,
    /// Who may be told of it, or of more of it, in the model: a bit each.
    pub told: u8,
    /// Entries there before it begins, besides the bucket.
    pub before: u8,
    /// So many steps of random walks besides, through larger bounds.
    pub walks: usize,
    /// One state in so many is tried for whether something can still be committed; 0: none.
    pub heal_one_in: u64,
    /// What must happen.
    pub expected: &'static [Seen],
    /// Fewer unique states than this, and the model is not what it was.
    pub least: usize,
    /// What is made wrong on purpose.
    #[cfg(feature = "mutants")]
    pub mutant: Option<ashlar_cluster_journal::Mutant>,
    /// What happened: bits by [`Seen`].
    pub seen: AtomicU64,
    /// What was worked out already.
    pub memo: Memo,
}

impl Plan {
    /// Three replicas and no faults.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            nodes: 3,
            founders: 3,
            // A little more than half a lease: so each wait of a lease, or half of one, is over at a tick.
            quantum: Limits::default().lease / 2 + Duration::from_millis(1),
            ticks: 0,
            crashes: 0,
            victims: 0xff,
            crash_loses: false,
            rots: 0,
            breaks: 0,
            drops: 0,
            repeats: 0,
            pauses: None,
            give_ups: 0,
            late: false,
            attempts: 3,
            prompt_acks: false,
            slow_disks: false,
            forgets: false,
            loses_index: false,
            formats: false,
            slow_index: false,
            rounds: 1,
            wishes: Vec::new(),
            keys: vec!["k"],
            readers: 0,
            reads: 0,
            batches: true,
            past: Past::Quiet,
            silence: 0,
            desired: Vec::new(),
            told: 0xff,
            before: 0,
            walks: 0,
            heal_one_in: 64,
            expected: &[],
            least: 1,
            #[cfg(feature = "mutants")]
            mutant: None,
            seen: AtomicU64::new(0),
            memo: Memo::default(),
        }
    }

    /// A replica's configuration.
    pub fn config(&self, node: usize) -> Config {
        let founders = (0..self.founders).map(device).collect();
        let mut config = Config::new(PartitionId(7), device(node), founders);
        // All other bounds and waits are those that ship.
        if !self.batches {
            config.limits.batch_bytes = 1;
        }
        if self.forgets {
            config.limits.tail_bytes = 1;
            config.limits.keep_bytes = 0;
        }
        #[cfg(feature = "mutants")]
        {
            config.mutant = self.mutant;
        }
        config
    }

    /// Sets another bound: `ticks=2`.
    pub fn set(&mut self, bound: &str) -> Result<(), String> {
        let (name, value) = bound.split_once('=').unwrap_or((bound, ""));
        // It is another model then.
        self.least = 1;
        let number = value.parse::<u8>();
        let refused = |_| format!("{bound:?}: a number up to 255 is wanted");
        let bound = match name {
            "ticks" => &mut self.ticks,
            "crashes" => &mut self.crashes,
            "rots" => &mut self.rots,
            "breaks" => &mut self.breaks,
            "drops" => &mut self.drops,
            "repeats" => &mut self.repeats,
            "give_ups" => &mut self.give_ups,
            "attempts" => &mut self.attempts,
            "reads" => &mut self.reads,
            "silence" => &mut self.silence,
            "victims" => &mut self.victims,
            "pauses" => {
                self.pauses = match value {
                    "none" => None,
                    _ => Some(number.map_err(refused)?),
                };
                return Ok(());
            }
            "rounds" => {
                self.rounds = number.map_err(refused)?.into();
                return Ok(());
            }
            "heal_one_in" => {
                self.heal_one_in = value.parse().map_err(|_| "a number is wanted".to_owned())?;
                return Ok(());
            }
            "prompt_acks" => {
                self.prompt_acks = number.map_err(refused)? > 0;
                return Ok(());
            }
            "forgets" => {
                self.forgets = number.map_err(refused)? > 0;
                return Ok(());
            }
            "slow_index" => {
                self.slow_index = number.map_err(refused)? > 0;
                return Ok(());
            }
            "slow_disks" => {
                self.slow_disks = number.map_err(refused)? > 0;
                return Ok(());
            }
            _ => return Err(format!("there is no bound {name:?}")),
        };
        *bound = number.map_err(refused)?;
        Ok(())
    }

    /// The keys that clients change.
    pub fn keys(&self) -> &[&'static str] {
        &self.keys
    }

    /// It happened.
    pub fn saw(&self, what: Seen) {
        self.seen.fetch_or(1 << what as u8, Ordering::Relaxed);
    }

    /// What happened before a model begins does not count.
    pub fn forget(&self) {
        self.seen.store(0, Ordering::Relaxed);
    }

    /// What happened.
    pub fn happened(&self) -> Vec<Seen> {
        let seen = self.seen.load(Ordering::Relaxed);
        let happened = |what: &Seen| seen & 1 << *what as u8 != 0;
        Seen::ALL.into_iter().filter(happened).collect()
    }

    /// What was expected and did not happen.
    pub fn missing(&self) -> Vec<Seen> {
        let happened = self.happened();
        let missing = |what: &&Seen| !happened.contains(what);
        self.expected.iter().filter(missing).copied().collect()
    }
}

/// The device of a node: numbered from 1.
pub fn device(node: usize) -> DeviceNo {
    DeviceNo(node as u32 + 1)
}

/// The node of a device.
pub fn node(device: DeviceNo) -> usize {
    (device.0 as usize).wrapping_sub(1)
}

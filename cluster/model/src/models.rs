//! The models: each a few faults at a time, so that all of their orders can be gone through.
//!
//! Each begins where what it is for lies within reach, and has the bounds that its states can be gone
//! through in the time that there is: a minute for all of them, ten, or hours.

use crate::client::Wish;
use crate::plan::{Past, Plan, Seen, device};

/// How large the bounds are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// For a test of the models themselves: seconds.
    Small,
    /// For every change: minutes.
    Usual,
    /// For a night.
    Large,
}

impl Scale {
    fn of<T>(self, small: T, usual: T, large: T) -> T {
        match self {
            Scale::Small => small,
            Scale::Usual => usual,
            Scale::Large => large,
        }
    }

    /// What all have in common.
    fn plan(self, name: &'static str) -> Plan {
        Plan {
            prompt_acks: self != Scale::Large,
            attempts: 1,
            // The states of a model are millions: as many as are tried take a tenth of the time.
            heal_one_in: 1000,
            walks: self.of(100_000, 300_000, 50_000_000),
            ..Plan::new(name)
        }
    }
}

/// A model's name, and how it is made.
pub type Maker = (&'static str, fn(Scale) -> Plan);

/// All models.
pub fn models() -> Vec<Maker> {
    vec![
        ("normal", normal),
        ("breaks", breaks),
        ("lease", lease),
        ("pause", pause),
        ("failover", failover),
        ("tails", tails),
        ("promise", promise),
        ("damage", damage),
        ("witness", witness),
        ("rot", rot),
        ("once", once),
        ("blank", blank),
        ("headless", headless),
        ("overtaken", overtaken),
        ("bare", bare),
        ("renewed", renewed),
        ("learn", learn),
        ("swap", swap),
        ("change", change),
        ("race", race),
        ("lesson", lesson),
        ("pupil", pupil),
        ("heir", heir),
    ]
}

/// A write on slow devices, a crash that loses the tail, a restart; a message is lost, another one comes twice.
fn normal(scale: Scale) -> Plan {
    Plan {
        prompt_acks: false,
        crashes: scale.of(1, 1, 2),
        drops: scale.of(0, 1, 1),
        repeats: scale.of(0, 1, 1),
        slow_disks: true,
        attempts: 3,
        wishes: vec![vec![Wish::put("k")]],
        expected: scale.of(
            &[Seen::Commit, Seen::LostTail],
            &[Seen::Commit, Seen::LostTail, Seen::Repeat],
            &[Seen::Commit, Seen::LostTail, Seen::Repeat],
        ),
        least: scale.of(1, 1_000_000, 1),
        ..scale.plan("normal")
    }
}

/// A write, while a connection breaks and is made again; what was said is said again.
fn breaks(scale: Scale) -> Plan {
    Plan {
        prompt_acks: false,
        breaks: scale.of(1, 1, 2),
        drops: scale.of(0, 1, 1),
        repeats: 1,
        slow_disks: true,
        attempts: 3,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::Repeat],
        least: scale.of(1, 300_000, 1),
        ..scale.plan("breaks")
    }
}

/// Time goes on and some do not notice: nobody reads what is not so any more.
fn lease(scale: Scale) -> Plan {
    Plan {
        pauses: Some(scale.of(0, 0, 1)),
        silence: 2,
        ticks: scale.of(1, 2, 2),
        wishes: vec![vec![Wish::put("k")]],
        expected: &[
            Seen::Commit,
            Seen::Election,
            Seen::Race,
            Seen::Fenced,
            Seen::TwoHeads,
        ],
        least: scale.of(1, 9_000_000, 1),
        ..scale.plan("lease")
    }
}

/// The same, and some stand still in the middle of what they do.
fn pause(scale: Scale) -> Plan {
    Plan {
        name: "pause",
        pauses: Some(scale.of(0, 2, 3)),
        ticks: 1,
        least: scale.of(1, 17_000_000, 1),
        ..lease(scale)
    }
}

/// The head ends, and is started again: two candidates, and an entry that may have been committed.
fn failover(scale: Scale) -> Plan {
    Plan {
        pauses: Some(scale.of(0, 0, 1)),
        silence: 2,
        crashes: 1,
        victims: 0b001,
        crash_loses: scale != Scale::Small,
        ticks: scale.of(0, 1, 2),
        rounds: scale.of(1, 1, 2),
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::Election],
        least: scale.of(1, 4_000_000, 1),
        ..scale.plan("failover")
    }
}

/// Two reigns ended at once, with an entry each at the same place.
fn tails(scale: Scale) -> Plan {
    Plan {
        past: Past::TwoTails,
        pauses: Some(scale.of(0, 1, 1)),
        batches: false,
        ticks: scale.of(2, 2, 3),
        rounds: 3,
        expected: &[Seen::Election, Seen::Truncation],
        least: scale.of(1, 19_000_000, 1),
        ..scale.plan("tails")
    }
}

/// A follower ends after it has promised itself to a new head.
fn promise(scale: Scale) -> Plan {
    Plan {
        past: Past::Promised,
        pauses: Some(scale.of(0, 0, 1)),
        crashes: 1,
        victims: 0b100,
        ticks: scale.of(1, 1, 2),
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Election],
        least: scale.of(1, 3_000_000, 1),
        ..scale.plan("promise")
    }
}

/// The head ends, and its device loses what it had acknowledged.
fn damage(scale: Scale) -> Plan {
    Plan {
        past: Past::Half,
        pauses: Some(scale.of(0, 0, 1)),
        silence: 2,
        crashes: 1,
        rots: 1,
        victims: 0b001,
        crash_loses: scale != Scale::Small,
        ticks: 1,
        attempts: 2,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::Rot],
        least: scale.of(1, 7_000_000, 1),
        ..scale.plan("damage")
    }
}

/// Reads by witnesses, while the object is changed and a witness restarts.
fn witness(scale: Scale) -> Plan {
    Plan {
        prompt_acks: false,
        pauses: scale.of(None, None, Some(1)),
        crashes: scale.of(0, 1, 1),
        ticks: scale.of(0, 0, 1),
        before: 1,
        readers: 1,
        reads: scale.of(1, 2, 2),
        attempts: 3,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::CachedRead, Seen::CachedMiss],
        least: scale.of(1, 400_000, 1),
        ..scale.plan("witness")
    }
}

/// Reads by witnesses, one of which restarts with a damaged device.
fn rot(scale: Scale) -> Plan {
    Plan {
        prompt_acks: false,
        pauses: Some(scale.of(1, 1, 2)),
        crashes: 1,
        rots: 1,
        victims: 0b010,
        ticks: scale.of(0, 1, 1),
        before: 1,
        readers: 1,
        reads: 1,
        attempts: 3,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[
            Seen::CachedRead,
            Seen::CachedMiss,
            Seen::Ignorant,
            Seen::Rot,
        ],
        least: scale.of(1, 7_000_000, 1),
        ..scale.plan("rot")
    }
}

/// Requests that are sent more than once, some of them late, do their work once.
fn once(scale: Scale) -> Plan {
    Plan {
        past: Past::Half,
        pauses: Some(scale.of(0, 1, 2)),
        silence: 2,
        give_ups: 1,
        late: true,
        ticks: 1,
        attempts: 2,
        wishes: vec![vec![Wish::create("k")]],
        expected: &[Seen::Commit, Seen::Retry, Seen::Election, Seen::Stray],
        least: scale.of(1, 10_000_000, 1),
        ..scale.plan("once")
    }
}

fn members(numbers: [usize; 3]) -> Vec<ashlar_layout::ids::DeviceNo> {
    numbers.map(device).to_vec()
}

/// A member's device loses its index, and with it what was forgotten of its log: it asks all others what it
/// promised, and is taught; meanwhile a change is made, and time goes on.
fn blank(scale: Scale) -> Plan {
    Plan {
        past: Past::Half,
        attempts: 2,
        pauses: Some(scale.of(0, 0, 1)),
        forgets: true,
        loses_index: true,
        crashes: 1,
        rots: 1,
        victims: 0b010,
        silence: 1,
        ticks: scale.of(1, 2, 3),
        desired: vec![members([0, 1, 2])],
        told: 0,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::Election, Seen::Rot, Seen::Lesson],
        least: scale.of(1, 9_000_000, 1),
        ..scale.plan("blank")
    }
}

/// The same happens to the head's.
fn headless(scale: Scale) -> Plan {
    Plan {
        name: "headless",
        past: Past::Quiet,
        attempts: 1,
        silence: 1,
        victims: 0b001,
        least: scale.of(1, 9_500_000, 1),
        ..blank(scale)
    }
}

/// The same happens to one that has helped a new head into office, of which the old one has not heard.
fn overtaken(scale: Scale) -> Plan {
    Plan {
        name: "overtaken",
        past: Past::Overtaken,
        attempts: 1,
        silence: 0,
        victims: 0b100,
        ticks: scale.of(0, 0, 1),
        expected: &[Seen::Commit, Seen::Rot, Seen::Election, Seen::Lesson],
        least: scale.of(1, 90_000, 1),
        ..blank(scale)
    }
}

/// A member's device, which holds what a third one lacks, is formatted anew: nothing on it tells that it ever had
/// anything.
fn bare(scale: Scale) -> Plan {
    Plan {
        name: "bare",
        formats: true,
        least: scale.of(1, 1_000_000, 1),
        ..blank(scale)
    }
}

/// The same happens to one that has helped a new head into office, of which the old one has not heard.
fn renewed(scale: Scale) -> Plan {
    Plan {
        name: "renewed",
        formats: true,
        least: scale.of(1, 10_000, 1),
        ..overtaken(scale)
    }
}

/// A spare learns and becomes a member, while a change is made.
fn learn(scale: Scale) -> Plan {
    Plan {
        pauses: Some(scale.of(0, 1, 2)),
        nodes: 4,
        ticks: 1,
        desired: vec![members([0, 1, 3])],
        told: 0b0001,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit],
        least: scale.of(1, 1_500_000, 1),
        ..scale.plan("learn")
    }
}

/// Reads by witnesses, while the chain's composition changes and a write is made.
fn swap(scale: Scale) -> Plan {
    Plan {
        past: Past::Begun,
        pauses: scale.of(Some(0), None, Some(1)),
        nodes: 4,
        ticks: scale.of(0, 0, 1),
        before: 1,
        readers: 1,
        reads: 1,
        desired: vec![members([0, 1, 3])],
        wishes: vec![vec![Wish::put("k")]],
        expected: &[
            Seen::Commit,
            Seen::Change,
            Seen::CachedRead,
            Seen::CachedMiss,
        ],
        least: scale.of(1, 500_000, 1),
        ..scale.plan("swap")
    }
}

/// The chain's composition changes while those of the old one choose another head, which is to change it
/// otherwise.
fn change(scale: Scale) -> Plan {
    Plan {
        past: Past::Torn,
        pauses: Some(scale.of(0, 1, 2)),
        silence: 2,
        nodes: 4,
        told: 0,
        desired: vec![members([0, 1, 3]), members([1, 2, 3])],
        expected: &[Seen::Election, Seen::ChangeRace],
        least: scale.of(1, 20_000_000, 1),
        ..scale.plan("change")
    }
}

/// Two heads have begun to change the chain's composition, each by another wish.
fn race(scale: Scale) -> Plan {
    Plan {
        past: Past::Racing,
        pauses: Some(scale.of(0, 0, 1)),
        nodes: 4,
        ticks: scale.of(0, 1, 1),
        told: 0,
        desired: vec![members([0, 1, 3]), members([1, 2, 3])],
        expected: &[Seen::Election, Seen::ChangeRace, Seen::ChangeUndone],
        least: scale.of(1, 7_000_000, 1),
        ..scale.plan("race")
    }
}

/// One that was away is taught what the log of its head has forgotten, while a change is made; it, or its head,
/// ends in the middle of that.
fn lesson(scale: Scale) -> Plan {
    Plan {
        past: Past::Away,
        forgets: true,
        slow_index: scale != Scale::Small,
        pauses: Some(scale.of(0, 1, 2)),
        crashes: scale.of(0, 1, 1),
        victims: 0b101,
        ticks: 1,
        wishes: vec![vec![Wish::put("k")]],
        expected: &[Seen::Commit, Seen::Lesson],
        least: scale.of(1, 3_000_000, 1),
        ..scale.plan("lesson")
    }
}

/// The same, and its head's lease is over: the others choose another one, which may need the one that learns, or
/// be the one.
fn pupil(scale: Scale) -> Plan {
    Plan {
        name: "pupil",
        pauses: Some(scale.of(0, 0, 1)),
        silence: 2,
        victims: 0b100,
        ticks: scale.of(0, 0, 1),
        expected: &[Seen::Commit, Seen::Election, Seen::TwoHeads, Seen::Lesson],
        least: scale.of(1, 1_000_000, 1),
        ..lesson(scale)
    }
}

/// The same, none ends, and time goes on: candidates race, and the one that learns may be among them.
fn heir(scale: Scale) -> Plan {
    Plan {
        name: "heir",
        crashes: 0,
        ticks: 1,
        expected: &[
            Seen::Commit,
            Seen::Election,
            Seen::Race,
            Seen::TwoHeads,
            Seen::Lesson,
        ],
        least: scale.of(1, 1_900_000, 1),
        ..pupil(scale)
    }
}

/// The model that must notice a mutant.
#[cfg(feature = "mutants")]
pub fn hunter(mutant: ashlar_cluster_journal::Mutant) -> &'static str {
    use ashlar_cluster_journal::Mutant as M;
    match mutant {
        M::SealQuorumShort | M::LeaseTooLong => "lease",
        M::AckBeforeDurable => "normal",
        M::CommitAcrossEpochs | M::RejoinWithoutResync => "tails",
        M::WitnessAfterReply => "witness",
        M::DedupNotCarried => "once",
        M::CountDamagedTail => "damage",
        M::PromiseForgotten => "promise",
        M::ConfigSkipsUnion => "change",
        M::WitnessSpeaksEarly => "rot",
    }
}

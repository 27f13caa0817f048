//! Which superblock is believed, of those that the copies hold.
//!
//! Invariants:
//! - one copy alone is never believed, however new;
//! - at each moment of a turn the old or the new superblock is elected, never neither;
//! - copies that contradict each other elect none: a person has to look.
//!
//! The rules are in FORMAT.md, "Superblock".

use crate::ids::DeviceId;
use crate::limits::{SUPERBLOCK_COPIES, SUPERBLOCK_QUORUM};
use crate::superblock::Superblock;

/// Why no superblock can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElectError {
    /// No copy can be read.
    #[error("none of the {SUPERBLOCK_COPIES} copies of the superblock can be read")]
    None,
    /// There are copies, but no two agree.
    #[error(
        "{valid} copies of the superblock can be read, but no {SUPERBLOCK_QUORUM} agree; the \
         newest has sequence number {newest}"
    )]
    NoQuorum {
        /// Copies that can be read.
        valid: usize,
        /// The highest sequence number on them.
        newest: u64,
    },
    /// Two pairs of copies, of the same age, tell different things.
    #[error("the copies of the superblock with sequence number {sequence} contradict each other")]
    Conflict {
        /// Their sequence number.
        sequence: u64,
    },
    /// Copies of different devices or clusters: the device was overwritten in part.
    #[error("the copies of the superblock are of different devices: {first} and {second}")]
    Mixed {
        /// One device.
        first: DeviceId,
        /// The other.
        second: DeviceId,
    },
}

/// The highest sequence number on any copy that can be read, believed or not.
pub fn newest_sequence(copies: &[Option<Superblock>; SUPERBLOCK_COPIES]) -> u64 {
    copies
        .iter()
        .flatten()
        .map(|copy| copy.sequence)
        .max()
        .unwrap_or(0)
}

/// Believes the newest superblock on which enough copies agree. `copies[i]` is what was read at
/// copy `i`'s place; one that says it is another copy was misdirected, and does not count.
pub fn elect(copies: &[Option<Superblock>; SUPERBLOCK_COPIES]) -> Result<Superblock, ElectError> {
    let mut valid = Vec::with_capacity(SUPERBLOCK_COPIES);
    for (place, copy) in copies.iter().enumerate() {
        if let Some(superblock) = copy
            && usize::from(superblock.copy) == place
        {
            valid.push((superblock, superblock.body_crc()));
        }
    }
    let Some(newest) = valid.iter().map(|(copy, _)| copy.sequence).max() else {
        return Err(ElectError::None);
    };
    let mut best: Option<(&Superblock, u32)> = None;
    for &(copy, body_crc) in &valid {
        let votes = valid.iter().filter(|(_, other)| *other == body_crc).count();
        if votes < SUPERBLOCK_QUORUM {
            continue;
        }
        match best {
            Some((other, other_crc))
                if other.sequence == copy.sequence && other_crc != body_crc =>
            {
                return Err(ElectError::Conflict {
                    sequence: copy.sequence,
                });
            }
            Some((other, _)) if other.device != copy.device => {
                return Err(ElectError::Mixed {
                    first: other.device,
                    second: copy.device,
                });
            }
            Some((other, _)) if other.sequence >= copy.sequence => {}
            _ => best = Some((copy, body_crc)),
        }
    }
    match best {
        Some((superblock, _)) => Ok(*superblock),
        None => Err(ElectError::NoQuorum {
            valid: valid.len(),
            newest,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClusterId, DeviceNo, NodeId, OwnerEpoch};
    use crate::superblock::Labels;

    fn first() -> Superblock {
        Superblock {
            cluster: ClusterId([1; 16]),
            device: DeviceId([2; 16]),
            sequence: 1,
            parent_crc: 0,
            block_size: 4096,
            extent_size: 16 << 20,
            device_size: 64 << 20,
            owner_epoch: OwnerEpoch(0),
            incarnation_ceiling: 1,
            record_ceiling: 1,
            checkpoint: None,
            node: NodeId(1),
            device_no: DeviceNo(1),
            labels: Labels::default(),
            clean: true,
            copy: 0,
        }
    }

    fn copies(of: [Option<&Superblock>; 4]) -> [Option<Superblock>; 4] {
        let mut place = 0;
        of.map(|superblock| {
            let copy = place;
            place += 1;
            superblock.map(|s| Superblock::decode(&s.encode(copy)).unwrap())
        })
    }

    #[test]
    fn each_follows_the_one_before() {
        let one = first();
        let two = one.succeed(1);
        assert_eq!((two.sequence, two.parent_crc), (2, one.body_crc()));
        assert_eq!(
            one.succeed(9).sequence,
            10,
            "a number that was seen is not used again"
        );
        let crcs = [0, 3].map(|copy| Superblock::decode(&one.encode(copy)).unwrap().body_crc());
        assert_eq!(crcs, [one.body_crc(); 2], "all copies agree on the body");
    }

    #[test]
    fn every_state_of_a_turn_elects_the_old_or_the_new() {
        let one = first();
        let mut two = one.succeed(1);
        two.owner_epoch = OwnerEpoch(1);
        // Copies 0 and 1 are written and made durable, then 2 and 3; each may be torn.
        for state in 0..81 {
            let digit = |i: u32| state / 3u32.pow(i) % 3;
            let of = [0, 1, 2, 3].map(|i| [Some(&one), None, Some(&two)][digit(i) as usize]);
            let first_pair_new = digit(0) == 2 && digit(1) == 2;
            let second_pair_old = digit(2) == 0 && digit(3) == 0;
            if !first_pair_new && !second_pair_old {
                continue; // no crash leaves this
            }
            let got = elect(&copies(of)).unwrap();
            assert_eq!(
                got.body_crc(),
                if first_pair_new { two } else { one }.body_crc()
            );
        }
    }

    #[test]
    fn one_alone_is_not_believed() {
        let one = first();
        let two = one.succeed(1);
        let three = two.succeed(2);
        assert_eq!(elect(&[None; 4]), Err(ElectError::None));
        let alone = copies([None, None, Some(&two), None]);
        assert_eq!(
            elect(&alone),
            Err(ElectError::NoQuorum {
                valid: 1,
                newest: 2
            })
        );
        let apart = copies([Some(&one), Some(&two), Some(&three), None]);
        assert_eq!(
            elect(&apart),
            Err(ElectError::NoQuorum {
                valid: 3,
                newest: 3
            })
        );
        let lone_newest = copies([Some(&three), None, Some(&one), Some(&one)]);
        assert_eq!(elect(&lone_newest).unwrap().sequence, 1);
        assert_eq!(
            newest_sequence(&lone_newest),
            3,
            "but its number is used up"
        );
    }

    #[test]
    fn a_misdirected_copy_has_no_vote() {
        let one = first();
        let mut seen = copies([Some(&one), None, None, None]);
        seen[3] = seen[0];
        assert_eq!(
            elect(&seen),
            Err(ElectError::NoQuorum {
                valid: 1,
                newest: 1
            })
        );
    }

    #[test]
    fn contradictions_are_no_election() {
        let one = first();
        let two = one.succeed(1);
        let mut other = two;
        other.owner_epoch = OwnerEpoch(7);
        let torn = copies([Some(&two), Some(&two), Some(&other), Some(&other)]);
        assert_eq!(elect(&torn), Err(ElectError::Conflict { sequence: 2 }));
        let mut foreign = one;
        foreign.device = DeviceId([3; 16]);
        let mixed = copies([Some(&two), Some(&two), Some(&foreign), Some(&foreign)]);
        assert!(matches!(elect(&mixed), Err(ElectError::Mixed { .. })));
    }
}

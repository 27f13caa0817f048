//! Names of things: the identifiers that stand on disk and on the wire.
//!
//! Each is a newtype, so that a shard's index is never taken for a device's number. All are
//! encoded little-endian at their fixed width.

use std::fmt;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// Names print the same in errors and in logs.
macro_rules! debug_as_display {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            Serialize, Deserialize, SchemaWrite, SchemaRead,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// A member of the cluster map: one `ashlar node` process. Numbered from 1.
    NodeId(u32)
);
number!(
    /// A device's place in the cluster map. Numbered from 1; short for [`DeviceId`].
    DeviceNo(u32)
);
number!(
    /// A placement group's place in the cluster map.
    PgId(u32)
);
number!(
    /// A partition of the (bucket, key) order.
    PartitionId(u32)
);
number!(
    /// The cluster map's version. Every frame carries it.
    Epoch(u64)
);
number!(
    /// A head's reign over a chain: a round (high 32 bits) and the device of its head (low 32 bits). A
    /// device promises itself a round durably before it uses it, and never uses it again: two reigns
    /// never share a number, so (term, seq) names one entry for ever.
    Term(u64)
);

impl Term {
    /// The reign of `head` in this round.
    pub fn new(round: u32, head: DeviceNo) -> Term {
        Term(u64::from(round) << 32 | u64::from(head.0))
    }

    /// Its round.
    pub fn round(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The device of its head; number 0 in term 0, which nobody reigned.
    pub fn head(self) -> DeviceNo {
        DeviceNo(self.0 as u32)
    }
}
number!(
    /// A journal entry's place in its partition. The first entry has number 1; 0 is "none".
    Seq(u64)
);
number!(
    /// An extent's index on its device.
    ExtentNo(u32)
);
number!(
    /// An extent's life number: reserved before use, never reused on a device.
    Incarnation(u64)
);
number!(
    /// How many times a device has been opened: the superblock holds it, every header carries it.
    OwnerEpoch(u64)
);
number!(
    /// A client process. Random, 64 bits.
    ClientId(u64)
);
number!(
    /// A client's request to the journal; counts up from 1 in each client.
    RequestNo(u64)
);

macro_rules! uuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaWrite, SchemaRead,
        )]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, byte) in self.0.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        debug_as_display!($name);

        impl std::str::FromStr for $name {
            type Err = UuidError;

            fn from_str(text: &str) -> Result<Self, UuidError> {
                let mut bytes = [0u8; 16];
                let mut digits = text.bytes().filter(|b| *b != b'-');
                for byte in &mut bytes {
                    let (Some(high), Some(low)) = (digits.next(), digits.next()) else {
                        return Err(UuidError);
                    };
                    let digit = |d: u8| (d as char).to_digit(16).ok_or(UuidError);
                    *byte = (digit(high)? * 16 + digit(low)?) as u8;
                }
                if digits.next().is_some() { Err(UuidError) } else { Ok(Self(bytes)) }
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if !d.is_human_readable() {
                    return <[u8; 16]>::deserialize(d).map($name);
                }
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The text is not 32 hexadecimal digits, with or without dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a uuid: it takes 32 hexadecimal digits")]
pub struct UuidError;

uuid!(
    /// A cluster's name for itself. Written to every superblock; a node of one refuses another's.
    ClusterId
);
uuid!(
    /// A device's name for itself, made when it is formatted.
    DeviceId
);

/// A stripe, unique per *attempt* to write it: the writer's random 64 bits, then its counter.
///
/// A retry makes a new one, so shards of two attempts are never mixed.
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    SchemaWrite,
    SchemaRead,
)]
pub struct StripeId {
    /// Random per writer.
    pub writer: u64,
    /// Counts up in the writer, from 1 on. Of a stripe that was moved, the upper 24 bits are a number of that move.
    pub attempt: u64,
}

/// Bits of a stripe's number that its writer counts in: enough for a thousand stripes a second for 34 years.
const ATTEMPT_BITS: u32 = 40;

impl StripeId {
    /// The id that the stripe's bytes were written under first, wherever they have been moved since: what is encrypted
    /// goes by this one.
    pub fn origin(self) -> StripeId {
        StripeId {
            attempt: self.attempt & ((1 << ATTEMPT_BITS) - 1),
            ..self
        }
    }

    /// Another id for the same bytes, in another place. Of `turn` the lower 24 bits count: whoever moves it
    /// counts from elsewhere than others, and gives the number of an earlier move again at 2^-24 each.
    #[must_use]
    pub fn moved(self, turn: u64) -> StripeId {
        let last = self.attempt >> ATTEMPT_BITS;
        let most = u64::MAX >> ATTEMPT_BITS;
        // 0 is what was not moved, and a stripe is not moved onto itself.
        let mut turn = turn & most;
        while turn == 0 || turn == last {
            turn = (turn + 1) & most;
        }
        StripeId {
            attempt: self.origin().attempt | turn << ATTEMPT_BITS,
            ..self
        }
    }
}

impl fmt::Display for StripeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{:x}", self.writer, self.attempt)
    }
}

debug_as_display!(StripeId);

/// One shard: its stripe, and its index in it (0..k data, k..k+m parity).
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    SchemaWrite,
    SchemaRead,
)]
pub struct ShardId {
    /// The stripe that it belongs to.
    pub stripe: StripeId,
    /// Its index in the stripe.
    pub index: u16,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stripe, self.index)
    }
}

debug_as_display!(ShardId);

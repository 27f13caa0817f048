//! Clients, and what they are owed.
//!
//! A client does what its script says, one request after the other, by the client's rule: it learns
//! from a replica that says it serves which reign that is, and sends; it sends again only after it
//! has given up the earlier attempt, whose answer does not count any more; an attempt that was given
//! up may still arrive, at the reign that it was meant for. A second kind of client reads by
//! witnesses.

use ashlar_layout::ids::{ClientId, DeviceNo, RequestNo, Seq, Term};
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition};
use ashlar_layout::slot::slot_of;

/// The bucket of every model.
pub const BUCKET: &str = "bucket";
/// The client that made it.
pub const FOUNDER: ClientId = ClientId(1000);
/// The client that tries whether something can still be committed.
pub const PROBE: ClientId = ClientId(2000);

/// A change that a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Of which key.
    pub key: &'static str,
    /// If what holds.
    pub precondition: Precondition,
}

impl Wish {
    /// Whatever is there.
    pub const fn put(key: &'static str) -> Self {
        let precondition = Precondition::None;
        Self { key, precondition }
    }

    /// If nothing is there.
    pub const fn create(key: &'static str) -> Self {
        let precondition = Precondition::Absent;
        Self { key, precondition }
    }

    /// The change itself.
    pub fn op(&self) -> Op {
        put(self.key)
    }
}

/// Puts an object without bytes: what it holds is of no interest, only which entry made it.
pub fn put(key: &str) -> Op {
    Op::Put {
        bucket: BUCKET.to_owned(),
        key: key.to_owned(),
        manifest: Manifest::plain(0, 0, Body::Inline),
    }
}

/// A proposal on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// To which node,
    pub to: usize,
    /// meant for which reign,
    pub term: Term,
    /// and for which of its processes.
    pub process: u8,
    /// Which request of the script.
    pub request: u8,
    /// How many came before it.
    pub number: u8,
    /// What a retry says.
    pub retry: Option<Seq>,
}

impl Attempt {
    /// The driver's name for the answer.
    pub fn reply_to(&self, client: usize) -> u64 {
        (client as u64) << 16 | u64::from(self.request) << 8 | u64::from(self.number)
    }
}

/// How a request ended, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It was done.
    Done(Seq),
    /// It was not, and never will be.
    Refused,
    /// Nobody remembers.
    Unknown,
}

/// A client that changes things.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Client {
    /// How its requests ended.
    pub ends: Vec<End>,
    /// The attempt that counts, and whether it arrived.
    pub attempt: Option<(Attempt, bool)>,
    /// Attempts that were given up, and have not arrived.
    pub stray: Vec<Attempt>,
    /// Attempts of this request so far.
    pub attempts: u8,
    /// The last entry that it was told of when it asked first.
    pub first_told: Option<Seq>,
    /// The last entry that it was told of.
    pub told: Seq,
}

impl Client {
    /// Which request is next.
    pub fn next(&self) -> usize {
        self.ends.len()
    }

    /// An answer to attempt `number` of the present request.
    pub fn ended(&mut self, end: End) {
        self.ends.push(end);
        self.attempt = None;
        self.attempts = 0;
        self.first_told = None;
    }
}

/// The identity of a client of the script.
pub fn client_id(client: usize) -> ClientId {
    ClientId(client as u64 + 1)
}

/// The number of its request.
pub fn request_no(request: u8) -> RequestNo {
    RequestNo(u64::from(request) + 1)
}

/// A client that reads what it remembers, if witnesses allow it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reader {
    /// What it remembers.
    pub cached: Option<Cached>,
    /// A read under way: the least version that it may give, and which witnesses have agreed.
    pub asking: Option<(Seq, u8)>,
    /// Reads done so far.
    pub reads: u8,
}

/// A manifest that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cached {
    /// The object's version; 0: there was none.
    pub version: Seq,
    /// Up to which entry that holds.
    pub as_of: Seq,
    /// In which composition of the chain,
    pub config: u64,
    /// whose members are these: a bit each.
    pub members: u8,
}

/// A set of members as bits, by node.
pub fn bits(members: &[DeviceNo]) -> u8 {
    members
        .iter()
        .fold(0, |bits, device| bits | 1 << device.0.saturating_sub(1))
}

/// The slot of a key of the script.
pub fn slot(key: &str) -> u32 {
    slot_of(BUCKET, key)
}

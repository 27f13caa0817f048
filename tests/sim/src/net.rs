//! The network: connections that carry bytes in order, late, in pieces, and not at all across a cut.
//!
//! Invariants:
//! - what arrives at an end of a connection arrives in the order in which it was sent;
//! - nothing arrives at a host that is cut off from the sender, until the cut is mended; who sent it learns of that by
//!   its own time-out only;
//! - what arrives where nobody is any more is answered by a reset.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ashlar_node_reactor::ConnId;
use bytes::Bytes;

use crate::disk::Rng;

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A node, by its place.
    Node(usize),
    /// A client, by its place.
    Client(usize),
}

/// What travels.
#[derive(Clone, Debug)]
pub enum Parcel {
    /// Somebody calls,
    Call,
    /// and is answered.
    Answer,
    /// Bytes.
    Bytes(Bytes),
    /// There will be no more.
    End,
    /// The connection is no more.
    Reset,
}

/// One end of a connection.
pub struct End {
    /// Whose.
    pub host: Host,
    /// Which life of the host's process.
    pub life: u64,
    /// Whether the process has it still.
    pub open: bool,
    /// Whether the caller may learn of it: it has been accepted, or answered.
    pub known: bool,
    /// What is on its way to it, in order, and when each arrives at the soonest.
    queue: VecDeque<(u64, Parcel)>,
    /// The first of it cannot come across a cut.
    blocked: bool,
}

/// A connection: who called is end 0.
pub struct Wire {
    /// Both ends.
    pub ends: [End; 2],
}

/// What comes next of the network.
pub enum Arrival {
    /// Something may arrive at an end.
    Parcel(u32, u8),
    /// What an end sent has been on its way for too long.
    Unconfirmed(u32, u8),
}

/// What a host is to hear.
pub enum Heard {
    /// Somebody calls.
    Accepted,
    /// The call is answered.
    Connected,
    /// Bytes came.
    Bytes(Bytes),
    /// So many bytes of its own have arrived.
    Arrived(usize),
    /// It is over; whether it ended well.
    Closed(bool),
}

/// How fast the network is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Nanoseconds that a parcel takes at least,
    pub least: u64,
    /// and so many more at random.
    pub spread: u64,
    /// Of a hundred parcels so many are cut in two.
    pub split: u64,
}

/// The network.
pub struct Net {
    /// All connections that somebody still has.
    pub wires: BTreeMap<u32, Wire>,
    /// From whom nothing reaches whom.
    pub cuts: BTreeSet<(Host, Host)>,
    /// Machines that are off.
    pub dark: BTreeSet<Host>,
    /// How fast it is now.
    pub pace: Pace,
    /// What is to come: when, and what.
    pub out: Vec<(u64, Arrival)>,
    rng: Rng,
}

/// Which process hears what of which connection.
pub type Told = (Host, u64, ConnId, Heard);

/// Nanoseconds after which the caller's socket gives up what is not confirmed,
const CALLER_WAIT: u64 = 400_000_000;
/// and after which the callee's finds out.
const CALLEE_WAIT: u64 = 60_000_000_000;

/// The name of an end.
pub fn name(wire: u32, end: u8) -> ConnId {
    ConnId::new(wire * 2 + u32::from(end), 0)
}

impl Net {
    /// A network on which nothing happens yet.
    pub fn new(pace: Pace, seed: u64) -> Net {
        Net {
            wires: BTreeMap::new(),
            cuts: BTreeSet::new(),
            dark: BTreeSet::new(),
            pace,
            out: Vec::new(),
            rng: Rng(seed),
        }
    }

    fn is_cut(&self, from: Host, to: Host) -> bool {
        self.cuts.contains(&(from, to)) || self.dark.contains(&from) || self.dark.contains(&to)
    }

    fn post(&mut self, now: u64, wire: u32, to: u8, parcel: Parcel) {
        let Some(it) = self.wires.get_mut(&wire) else {
            return;
        };
        let end = &mut it.ends[usize::from(to)];
        let delay = self.pace.least + self.rng.below(self.pace.spread + 1);
        let last = end.queue.back().map_or(0, |(at, _)| *at);
        let at = (now + delay).max(last);
        end.queue.push_back((at, parcel));
        self.out.push((at, Arrival::Parcel(wire, to)));
    }

    /// A process calls another one.
    pub fn call(&mut self, now: u64, conn: ConnId, from: (Host, u64), to: Host) {
        let wire = conn.slot() / 2;
        let end = |host, life| End {
            host,
            life,
            open: true,
            known: false,
            queue: VecDeque::new(),
            blocked: false,
        };
        let ends = [end(from.0, from.1), end(to, 0)];
        self.wires.insert(wire, Wire { ends });
        self.post(now, wire, 1, Parcel::Call);
    }

    /// An end sends bytes.
    pub fn send(&mut self, now: u64, conn: ConnId, mut bytes: Bytes) {
        let (wire, to) = other(conn);
        if bytes.len() > 1 && self.rng.chance(self.pace.split) {
            let at = 1 + self.rng.below(bytes.len() as u64 - 1) as usize;
            self.post(now, wire, to, Parcel::Bytes(bytes.split_to(at)));
        }
        self.post(now, wire, to, Parcel::Bytes(bytes));
    }

    /// An end says that it sends no more.
    pub fn close(&mut self, now: u64, conn: ConnId) {
        let (wire, to) = other(conn);
        self.post(now, wire, to, Parcel::End);
    }

    /// An end is gone, and the other one hears of it if `tells`.
    pub fn drop_end(&mut self, now: u64, conn: ConnId, tells: bool) {
        let (wire, to) = other(conn);
        let Some(it) = self.wires.get_mut(&wire) else {
            return;
        };
        it.ends[usize::from(1 - to)].open = false;
        if tells {
            self.post(now, wire, to, Parcel::Reset);
        }
        self.tidy(wire);
    }

    fn tidy(&mut self, wire: u32) {
        if let Some(it) = self.wires.get(&wire)
            && !it.ends[0].open
            && !it.ends[1].open
        {
            self.wires.remove(&wire);
        }
    }

    /// A process has ended: so have its ends. The others hear of it if the machine goes on.
    pub fn forget(&mut self, now: u64, host: Host, tells: bool) {
        let ends = |wire: &Wire| {
            [0, 1].map(|end: u8| {
                let it = &wire.ends[usize::from(end)];
                (it.host == host && it.open && (end == 0 || it.known)).then_some(end)
            })
        };
        let all = self.wires.iter();
        let ours: Vec<(u32, u8)> = all
            .flat_map(|(id, wire)| ends(wire).into_iter().flatten().map(|end| (*id, end)))
            .collect();
        for (wire, end) in ours {
            self.drop_end(now, name(wire, end), tells);
        }
    }

    /// Cuts, or mends, the way from one to another.
    pub fn cut(&mut self, now: u64, from: Host, to: Host, cut: bool) {
        if cut {
            self.cuts.insert((from, to));
        } else {
            self.cuts.remove(&(from, to));
            self.release(now);
        }
    }

    /// A machine goes off or comes back.
    pub fn darken(&mut self, now: u64, host: Host, dark: bool) {
        if dark {
            self.dark.insert(host);
        } else {
            self.dark.remove(&host);
            self.release(now);
        }
    }

    /// What waited at cuts that are mended goes on.
    fn release(&mut self, now: u64) {
        for (id, wire) in &mut self.wires {
            for to in [0u8, 1] {
                let end = &mut wire.ends[usize::from(to)];
                if std::mem::take(&mut end.blocked) {
                    self.out.push((now, Arrival::Parcel(*id, to)));
                }
            }
        }
    }

    /// Something arrives: who hears what.
    pub fn arrive(&mut self, now: u64, arrival: &Arrival) -> Vec<Told> {
        let mut told = Vec::new();
        match *arrival {
            Arrival::Parcel(wire, to) => {
                while let Some(parcel) = self.next(now, wire, to) {
                    self.parcel(now, wire, to, parcel, &mut told);
                }
            }
            Arrival::Unconfirmed(wire, by) => {
                let Some(it) = self.wires.get(&wire) else {
                    return told;
                };
                let (sender, other) = (&it.ends[usize::from(by)], &it.ends[usize::from(1 - by)]);
                if other.blocked && sender.open {
                    let conn = name(wire, by);
                    told.push((sender.host, sender.life, conn, Heard::Closed(false)));
                    self.drop_end(now, conn, false);
                }
            }
        }
        told
    }

    /// The next parcel to an end, if it has arrived.
    fn next(&mut self, now: u64, wire: u32, to: u8) -> Option<Parcel> {
        loop {
            let it = self.wires.get(&wire)?;
            let (from, end) = (it.ends[usize::from(1 - to)].host, &it.ends[usize::from(to)]);
            let arrived = end.queue.front().is_some_and(|(at, _)| *at <= now);
            if !arrived || end.blocked {
                return None;
            }
            let cut = self.is_cut(from, end.host);
            let end = &mut self.wires.get_mut(&wire)?.ends[usize::from(to)];
            let (at, parcel) = end.queue.pop_front()?;
            if !cut {
                return Some(parcel);
            }
            // Whoever calls has a time-out of its own, and a reset is said once.
            if !matches!(parcel, Parcel::Call | Parcel::Answer | Parcel::Reset) {
                end.queue.push_front((at, parcel));
                end.blocked = true;
                // The caller's socket has a time-out; the callee's waits for its keep-alive.
                let wait = if to == 1 { CALLER_WAIT } else { CALLEE_WAIT };
                self.out
                    .push((now + wait, Arrival::Unconfirmed(wire, 1 - to)));
            }
        }
    }

    fn parcel(&mut self, now: u64, wire: u32, to: u8, parcel: Parcel, told: &mut Vec<Told>) {
        let Some(it) = self.wires.get_mut(&wire) else {
            return;
        };
        let [caller, callee] = &mut it.ends;
        let (end, sender) = if to == 0 {
            (caller, callee)
        } else {
            (callee, caller)
        };
        let conn = name(wire, to);
        if !end.open {
            if !matches!(parcel, Parcel::Reset) && sender.open {
                self.post(now, wire, 1 - to, Parcel::Reset);
            }
            return;
        }
        match parcel {
            Parcel::Call => told.push((end.host, 0, conn, Heard::Accepted)),
            Parcel::Answer => {
                end.known = true;
                told.push((end.host, end.life, conn, Heard::Connected));
            }
            Parcel::Bytes(bytes) => {
                let arrived = Heard::Arrived(bytes.len());
                let from = name(wire, 1 - to);
                told.push((end.host, end.life, conn, Heard::Bytes(bytes)));
                if sender.open {
                    told.push((sender.host, sender.life, from, arrived));
                }
            }
            Parcel::End => {
                told.push((end.host, end.life, conn, Heard::Closed(true)));
                end.open = false;
                if sender.open {
                    self.post(now, wire, 1 - to, Parcel::End);
                }
            }
            Parcel::Reset => {
                told.push((end.host, end.life, conn, Heard::Closed(false)));
                end.open = false;
            }
        }
        self.tidy(wire);
    }

    /// A process takes a call, or nobody is there to take it.
    pub fn answer(&mut self, now: u64, conn: ConnId, life: Option<u64>) {
        let wire = conn.slot() / 2;
        let Some(it) = self.wires.get_mut(&wire) else {
            return;
        };
        let end = &mut it.ends[1];
        match life {
            Some(life) => {
                (end.life, end.known) = (life, true);
                self.post(now, wire, 0, Parcel::Answer);
            }
            None => {
                end.open = false;
                self.post(now, wire, 0, Parcel::Reset);
            }
        }
    }
}

/// The connection, and its other end.
fn other(conn: ConnId) -> (u32, u8) {
    (conn.slot() / 2, u8::from(conn.slot().is_multiple_of(2)))
}

//! One replica's process and device, and what becomes of them: the only place that touches a [`Replica`].
//!
//! Whatever happens in a model happens at one replica: it is told something, and what it does then
//! depends on nothing but itself, its device and the time. So that is worked out once for all the states of
//! the whole in which it comes up, and looked up from then on (`memo.rs`).
//!
//! Invariants:
//! - what a replica did is told to the rest of the model as [`Effect`]s, in order, each with what its
//!   judges need of the replica as it was at that moment;
//! - a [`Local`] is never changed once it is shared; its hash is that of everything in it.

use std::collections::VecDeque;
use std::sync::Arc;

use ashlar_cluster_index::{Action as IndexAction, Cache, Event as IndexEvent};
use ashlar_cluster_journal::{Action, Answer, Ask, Event, Replica};
use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::message::{ChainBody, ChainMessage, ErrorCode, Reply, WireError};
use ashlar_layout::time::Instant;

use crate::broken::Broken;
use crate::chunks::Chunks;
use crate::client::{self, Attempt, BUCKET};
use crate::disk::{self, Disk, Mark};
use crate::hash;
use crate::net::Letter;
use crate::plan::{Plan, Seen, device, node};

/// How far each clock is ahead of the one before it.
const APART: u64 = 1_000_000_000_000_000;

/// The name of a look-up's answer.
const ASKED: u64 = u64::MAX;

/// What a node's clock shows.
pub fn clock(at: usize, now: u64) -> Instant {
    Instant(now + APART * at as u64)
}

/// One replica's process and device.
#[derive(Clone, Debug, Default)]
pub struct Local {
    replica: Option<Replica>,
    /// Its device.
    pub disk: Disk,
    /// The index's part of it.
    pub chunks: Chunks,
    /// Counts its processes.
    pub process: u8,
    /// With whom it believes to be connected: a bit each.
    pub connected: u8,
    /// How much of what the cluster map wants it was told.
    pub desired: u8,
    /// It was left out, and knows it.
    pub retired: bool,
    /// Of everything above.
    pub hash: u64,
}

/// What happens at a replica.
#[derive(Clone, Debug)]
pub enum Cause {
    /// Its process is started, on what its device holds.
    Start,
    /// Its process ends, with power: of its writes under way so many are durable. Its device may lose
    /// the last record that was.
    Crash {
        /// So many.
        keep: usize,
        /// Whether it does.
        rot: bool,
    },
    /// A connection works.
    Up(usize),
    /// A connection broke.
    Down(usize),
    /// A message arrives.
    Letter(Arc<Letter>),
    /// The oldest write under way becomes durable.
    Flush,
    /// The oldest thing that its index waits for is done.
    Index,
    /// Its deadline has come.
    Deadline,
    /// A request of a client of the script arrives.
    Propose(usize, Attempt),
    /// It is told what the cluster map wants the chain to be, by this version of it.
    Desired(u8),
    /// Anything else; it is not looked up.
    Other(Box<Event>),
}

/// What a replica did, as far as others are concerned.
#[derive(Clone, Debug)]
pub enum Effect {
    /// It gives entries to its device.
    Writes(Vec<Mark>),
    /// An event was handled: what it held then, and what it took for committed before.
    Handled {
        /// What it took for committed before.
        before: Seq,
        /// And now,
        committed: Seq,
        /// in which reign.
        term: Term,
        /// Its log,
        held: Vec<Option<Mark>>,
        /// and what it has forgotten of that, or never had because it was taught.
        base: Seq,
    },
    /// It says something to another one.
    Says {
        /// To which node.
        to: usize,
        /// What.
        letter: Arc<Letter>,
        /// It is an acknowledgement.
        ack: bool,
    },
    /// It answers a client.
    Answers {
        /// Whom.
        reply_to: u64,
        /// What.
        reply: Reply,
        /// The entry of that number that was durable here.
        durable: Option<Mark>,
    },
    /// It did what must not be.
    Fails(Broken),
    /// Something happened that models are for.
    Shows(Seen),
}

/// What the rest of a model may know of a replica at some time.
#[derive(Clone, Debug, Default)]
pub struct Face {
    /// Its process runs.
    pub runs: bool,
    /// The newest reign that it knows of.
    pub term: Term,
    /// What it takes for committed.
    pub committed: Seq,
    /// What its index covers, and its log need not hold.
    pub base: Seq,
    /// The composition of the chain that it names,
    pub config: u64,
    /// and its members, by node.
    pub members: Vec<usize>,
    /// It answers reads.
    pub serving: bool,
    /// It is the head of that reign, and has written its first entry.
    pub reigned: bool,
    /// When it wants to be told the time, in the model's time.
    pub due: Option<u64>,
    /// What a look-up of each key gives: the version (0: no object), and if there is one, up to which
    /// entry that holds, and in which composition; nothing if it does not serve.
    pub look_ups: Vec<Option<(Seq, Seq, u64)>>,
    /// What it says as a witness of the first key.
    pub witness: (Option<u64>, Seq),
}

impl Face {
    /// The members as bits, by node.
    pub fn member_bits(&self) -> u8 {
        self.members.iter().fold(0, |bits, at| bits | 1 << at)
    }
}

/// What becomes of a replica.
#[derive(Debug)]
pub struct Step {
    /// How it is then,
    pub after: Arc<Local>,
    /// and how it looks.
    pub face: Arc<Face>,
    /// What it did.
    pub effects: Vec<Effect>,
}

impl Local {
    /// A device without a process.
    pub fn blank() -> Self {
        let mut blank = Self::default();
        blank.rehash();
        blank
    }

    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        self.replica.is_some()
    }

    /// To be called when something was changed.
    pub fn rehash(&mut self) {
        self.hash = hash::of(&(
            &self.replica,
            &self.disk,
            &self.chunks,
            self.process,
            self.connected,
            self.desired,
            self.retired,
        ));
    }

    /// A line for a person.
    pub fn story(&self) -> String {
        let Some(replica) = &self.replica else {
            return "does not run".to_owned();
        };
        let status = replica.status();
        format!(
            "{} {}: term {:x}, last {}, committed {}",
            status.role, status.state, status.term.0, status.last, status.committed
        )
    }

    /// How it looks.
    pub fn face(&self, plan: &Plan, at: usize, now: u64) -> Face {
        let Some(replica) = &self.replica else {
            return Face::default();
        };
        let clock_shows = clock(at, now);
        let view = replica.view(clock_shows);
        let held = self.disk.held.iter().flatten();
        let look_up = |key: &&str| match look_up(replica, &self.chunks, clock_shows, key)? {
            Ok(Answer::Found {
                meta,
                as_of,
                config,
                ..
            }) => Some((meta.version, as_of, config)),
            Err(error) if error.code == ErrorCode::NotFound => Some((Seq(0), Seq(0), 0)),
            _ => None,
        };
        Face {
            runs: true,
            term: view.term,
            committed: view.committed,
            base: base(replica),
            config: view.config,
            members: view.members.iter().map(|member| node(*member)).collect(),
            serving: view.serving,
            reigned: node(view.term.head()) == at && held.into_iter().any(|m| m.term == view.term),
            due: replica
                .next_deadline()
                .map(|due| due.0.saturating_sub(clock(at, 0).0)),
            look_ups: plan.keys().iter().map(look_up).collect(),
            witness: replica.witness(client::slot(plan.keys()[0])),
        }
    }

    /// What becomes of it.
    pub fn step(&self, plan: &Plan, at: usize, now: u64, cause: &Cause) -> Step {
        let mut doing = Doing {
            plan,
            at,
            now,
            local: self.clone(),
            effects: Vec::new(),
        };
        doing.happen(cause);
        let mut after = doing.local;
        after.rehash();
        Step {
            face: Arc::new(after.face(plan, at, now)),
            after: Arc::new(after),
            effects: doing.effects,
        }
    }
}

/// A step that is being made.
struct Doing<'a> {
    plan: &'a Plan,
    at: usize,
    now: u64,
    local: Local,
    effects: Vec<Effect>,
}

impl Doing<'_> {
    fn happen(&mut self, cause: &Cause) {
        let event = match cause {
            Cause::Start => {
                self.start();
                Event::Start {}
            }
            Cause::Crash { keep, rot } => return self.crash(*keep, *rot),
            Cause::Up(peer) => {
                self.local.connected |= 1 << peer;
                Event::PeerUp {
                    peer: device(*peer),
                }
            }
            Cause::Down(peer) => {
                self.local.connected &= !(1 << peer);
                Event::PeerDown {
                    peer: device(*peer),
                }
            }
            Cause::Letter(letter) => Event::Message {
                message: letter.message.clone(),
                payload: letter.payload.clone(),
            },
            Cause::Flush => match self.local.disk.complete() {
                Some((token, at, position)) => Event::Persisted {
                    token,
                    at,
                    position,
                },
                None => return,
            },
            Cause::Index => match self.local.chunks.complete() {
                Some((lane, event)) => Event::Index { lane, event },
                None => return,
            },
            Cause::Deadline => Event::Deadline,
            Cause::Propose(client, attempt) => match self.proposal(*client, *attempt) {
                Some(event) => event,
                None => return,
            },
            Cause::Desired(version) => {
                self.local.desired = *version;
                let nth = usize::from(*version).checked_sub(1);
                match nth.and_then(|nth| self.plan.desired.get(nth)) {
                    Some(members) => Event::Desired {
                        members: members.clone(),
                    },
                    None => return,
                }
            }
            Cause::Other(event) => (**event).clone(),
        };
        self.tell(event);
    }

    fn start(&mut self) {
        let local = &mut self.local;
        local.process += 1;
        local.connected = 0;
        local.retired = false;
        let mut config = self.plan.config(self.at);
        config.index.life = u64::from(local.process);
        let (index, kept) = local.chunks.open(&config.index).expect("it is whole");
        let blank = local.disk.lost && kept.is_empty();
        let mut replica = match blank {
            true if self.plan.formats => Replica::bare(config, index),
            true => Replica::blank(config, index),
            false => Replica::new(config, index, &kept).expect("what was kept is whole"),
        };
        for (position, record) in (1..).zip(&local.disk.records) {
            let marks = disk::marks(&record.entries);
            let span = marks.first().zip(marks.last());
            let span = span.map(|(first, last)| (first.seq, last.seq));
            if record.trimmed && blank {
                continue;
            }
            if record.rotten {
                replica.replay_damaged(span);
            } else if span.is_none_or(|(_, last)| !replica.is_past(last, position)) {
                replica.replay(&record.entries, record.at, position);
            }
        }
        local.replica = Some(replica);
    }

    fn crash(&mut self, keep: usize, rot: bool) {
        let local = &mut self.local;
        local.replica = None;
        local.connected = 0;
        if keep < local.disk.under_way.len() {
            self.effects.push(Effect::Shows(Seen::LostTail));
        }
        local.disk.crash(keep);
        local.chunks.crash();
        if rot && self.plan.loses_index {
            local.chunks.lose();
            if self.plan.formats {
                local.disk.records.clear();
            }
            local.disk.lose();
            self.effects.push(Effect::Shows(Seen::Rot));
        } else if rot && local.disk.rot() {
            self.effects.push(Effect::Shows(Seen::Rot));
        }
    }

    fn proposal(&self, client: usize, attempt: Attempt) -> Option<Event> {
        let wish = self.plan.wishes[client].get(usize::from(attempt.request))?;
        Some(Event::Propose {
            reply_to: attempt.reply_to(client),
            term: attempt.term,
            client: client::client_id(client),
            request: client::request_no(attempt.request),
            retry: attempt.retry,
            precondition: wish.precondition,
            op: wish.op(),
            inline: bytes::Bytes::new(),
            wall_ms: 0,
        })
    }

    /// Gives an event to the replica, and carries out what it wants of its own node.
    fn tell(&mut self, event: Event) {
        let clock_shows = clock(self.at, self.now);
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(replica) = &mut self.local.replica else {
                return;
            };
            let timer = event == Event::Deadline;
            let before = replica.view(clock_shows).committed;
            let mut out = Vec::new();
            let mut cache = Cache::new(0);
            let told = || replica.on_event(clock_shows, event, &mut cache, &mut out);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(told)).is_err() {
                return self.effects.push(Effect::Fails(Broken::Stopped));
            }
            let due = replica.next_deadline();
            if timer && due.is_some_and(|due| due <= clock_shows) {
                self.effects.push(Effect::Fails(Broken::Timer));
            }
            // What it holds now comes first: what it says and answers is judged by that.
            for action in &out {
                if let Action::Persist {
                    token,
                    first,
                    entries,
                    ..
                } = action
                {
                    self.persist(*token, *first, entries.clone());
                }
            }
            self.handled(before);
            for action in out {
                self.carry_out(action, &mut events);
            }
            if !self.plan.slow_disks {
                while let Some((token, at, position)) = self.local.disk.complete() {
                    events.push_back(Event::Persisted {
                        token,
                        at,
                        position,
                    });
                }
            }
            if !self.plan.slow_index {
                while let Some((lane, event)) = self.local.chunks.complete() {
                    events.push_back(Event::Index { lane, event });
                }
            }
            let replica = self.local.replica.as_ref();
            if events.is_empty() && replica.is_some_and(Replica::wants_turn) {
                events.push_back(Event::Turn);
            }
        }
    }

    fn handled(&mut self, before: Seq) {
        let Some(replica) = &self.local.replica else {
            return;
        };
        if replica.status().state.starts_with("stopped") {
            self.effects.push(Effect::Fails(Broken::Stopped));
        }
        let view = replica.view(clock(self.at, self.now));
        self.effects.push(Effect::Handled {
            before,
            committed: view.committed,
            term: view.term,
            held: self.local.disk.held.clone(),
            base: base(replica),
        });
    }

    fn persist(&mut self, token: u64, first: Seq, entries: bytes::Bytes) {
        let mut marks = disk::marks(&entries);
        marks.retain(|mark| mark.seq.0 > 0);
        let disk = &mut self.local.disk;
        if marks.iter().any(|mark| disk.contradicts(mark)) {
            self.effects.push(Effect::Fails(Broken::TwoValues));
        }
        let gone = disk.write(token, first, entries);
        if !gone.is_empty() {
            self.effects.push(Effect::Shows(Seen::Truncation));
        }
        if gone.iter().any(|mark| mark.chain != 0) {
            self.effects.push(Effect::Shows(Seen::ChangeUndone));
        }
        if !marks.is_empty() {
            self.effects.push(Effect::Writes(marks));
        }
    }

    fn carry_out(&mut self, action: Action, events: &mut VecDeque<Event>) {
        match action {
            // No map wants that here.
            Action::Bear { .. } | Action::Closed { .. } | Action::Born => {}
            Action::Send {
                to,
                message,
                payload,
            } => {
                self.check_said(&message);
                let to = node(to);
                if to < self.plan.nodes && self.local.connected & 1 << to != 0 {
                    let ack = matches!(message.body, ChainBody::Ack { .. });
                    let letter = Arc::new(Letter::new(message, payload));
                    self.effects.push(Effect::Says { to, letter, ack });
                }
            }
            Action::Reply { reply_to, reply } => {
                let durable = match &reply {
                    Reply::Committed { seq, .. } => disk::at(&self.local.disk.durable, *seq),
                    _ => None,
                };
                self.effects.push(Effect::Answers {
                    reply_to,
                    reply,
                    durable,
                });
            }
            Action::ReadLog { token, at, len } => {
                let bytes = self.local.disk.read(at, len);
                events.push_back(Event::LogRead { token, bytes });
            }
            Action::Retired => {
                self.local.retired = true;
                self.effects.push(Effect::Shows(Seen::Retired));
            }
            // The one is done already, the others answer questions that no model asks.
            Action::Persist { .. } | Action::Restored { .. } | Action::Answer { .. } => {}
            Action::Trim {
                through, position, ..
            } => {
                self.local.disk.trim(through, position);
                if through.0 > self.local.disk.held.len() as u64 {
                    self.effects.push(Effect::Shows(Seen::Lesson));
                }
            }
            Action::Index { lane, action } => match self.local.chunks.take(lane, action) {
                Ok(None) => {}
                Ok(Some(event)) => events.push_back(Event::Index { lane, event }),
                Err(_) => self.effects.push(Effect::Fails(Broken::Stopped)),
            },
        }
    }

    /// What a replica says of its device must be so.
    fn check_said(&mut self, message: &ChainMessage) {
        let disk = &self.local.disk;
        let base = self.local.replica.as_ref().map_or(Seq(0), base);
        let through = |seq: Seq| {
            let mut behind = base.0 + 1..=seq.0;
            behind.all(|seq| disk::at(&disk.durable, Seq(seq)).is_some())
        };
        let so = match &message.body {
            ChainBody::Ack { durable, .. } => through(*durable),
            ChainBody::Sealed {
                last, last_term, ..
            } => {
                let there = disk::at(&disk.durable, *last).map_or(Term(0), |mark| mark.term);
                // What its index covers, nobody can tell by the log.
                let there = *last <= base || there == *last_term;
                disk.promised >= message.term && there
            }
            _ => return,
        };
        let kept = message.term >= disk.promised;
        if !so {
            self.effects.push(Effect::Fails(Broken::NotDurable));
        }
        if !kept {
            self.effects.push(Effect::Fails(Broken::OldPromise));
        }
    }
}

/// What of its log a replica has forgotten, or never had.
fn base(replica: &Replica) -> Seq {
    let past = (1..).take_while(|seq| replica.is_past(Seq(*seq), 0));
    Seq(past.last().unwrap_or(0))
}

/// What a replica would answer to a reader, without its noticing: all pages that it needs are at hand.
fn look_up(
    replica: &Replica,
    chunks: &Chunks,
    now: Instant,
    key: &str,
) -> Option<Result<Answer, WireError>> {
    let ask = Ask::Lookup {
        bucket: BUCKET.to_owned(),
        key: key.to_owned(),
        id: None,
    };
    let mut asked = replica.clone();
    let mut chunks = chunks.clone();
    let mut cache = Cache::new(1 << 20);
    let mut events = VecDeque::from([Event::Ask {
        reply_to: ASKED,
        ask,
    }]);
    while let Some(event) = events.pop_front() {
        let mut out = Vec::new();
        asked.on_event(now, event, &mut cache, &mut out);
        for action in out {
            match action {
                Action::Answer {
                    reply_to: ASKED,
                    result,
                } => return Some(result),
                Action::Index {
                    lane,
                    action: action @ IndexAction::Read { .. },
                } => {
                    let event: Option<IndexEvent> = chunks.take(lane, action).ok().flatten();
                    events.extend(event.map(|event| Event::Index { lane, event }));
                }
                _ => {}
            }
        }
        if events.is_empty() && asked.wants_turn() {
            events.push_back(Event::Turn);
        }
    }
    None
}

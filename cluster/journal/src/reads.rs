//! What a replica can be asked: reads at the head, and how it stands.
//!
//! Invariants:
//! - reads are answered by a head in office, within its lease, from what is committed and applied. That is
//!   so when the question comes; the answer may come later, and still tells of that moment;
//! - a witness says nothing rather than something that may be too low.

use ashlar_cluster_index::{self as index, IndexError, List, Name, Output, Question, Versions};
use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::manifest::NULL_VERSION;
use ashlar_layout::message::{ChainView, ErrorCode, ReplicaStatus, WireError};
use ashlar_layout::root::InlinePlace;
use ashlar_layout::time::Instant;

use crate::api::{Action, Answer, Ask, InlineRef, ListParams};
use crate::chain::Chain;
use crate::indexing::Why;
use crate::mutants::mutant;
use crate::pending::Refusal;
use crate::replica::{Replica, Role};

/// Somebody who reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reader {
    pub(crate) reply_to: u64,
    pub(crate) ask: Ask,
    as_of: Seq,
    config: u64,
    /// There is no such object: the question is whether there is the bucket.
    absent: bool,
}

impl Reader {
    pub(crate) fn wants_digest(&self) -> bool {
        matches!(self.ask, Ask::Digest { .. })
    }
}

impl Replica {
    /// Whether it answers proposals and reads now: it is the head, in office, and within its lease.
    pub fn serving(&self, now: Instant) -> bool {
        self.in_office() && self.lease_holds(now)
    }

    /// Whether its reign has begun, and has not ended as far as it knows; its lease may be out.
    pub fn in_office(&self) -> bool {
        self.role == Role::Head && self.head.serving && self.stopped.is_none()
    }

    /// Whether it takes its part: it is in office, or follows a head; or it has no part in the chain.
    pub fn settled(&self) -> bool {
        match self.role {
            Role::Head => self.in_office(),
            Role::Follower => {
                let member = self.log.chain().contains(self.config.me);
                self.follower.sealed || !member || self.is_unborn()
            }
            Role::Replaying | Role::Starting => false,
        }
    }

    pub(crate) fn on_ask(&mut self, now: Instant, reply_to: u64, ask: Ask, out: &mut Vec<Action>) {
        if let Ask::Digest { .. } = ask {
            return self.on_digest(now, reply_to, ask, out);
        }
        let readers = self.questions.values();
        // Digests have a bound of their own.
        let reads = |why: &&Why| matches!(why, Why::Reader(reader) if !reader.wants_digest());
        let readers = readers.filter(reads).count();
        let refused = if readers >= self.config.limits.asks {
            Err(self.busy("reads"))
        } else {
            self.check_serving(now)
                .and_then(|()| self.check_reader(&ask))
        };
        if let Err(refusal) = refused {
            let result = Err(refusal.into());
            return out.push(Action::Answer { reply_to, result });
        }
        let reader = self.reader(reply_to, ask);
        self.read(reader, out);
    }

    pub(crate) fn reader(&self, reply_to: u64, ask: Ask) -> Reader {
        // A composition that is not committed may be taken back, and its number given to another one.
        let config = self.log.chain_at(self.committed).config;
        Reader {
            reply_to,
            ask,
            as_of: self.applied,
            config,
            absent: false,
        }
    }

    pub(crate) fn read(&mut self, reader: Reader, out: &mut Vec<Action>) {
        let mut at = None;
        let question = match &reader.ask {
            Ask::Lookup { bucket, .. } if reader.absent => Question::Bucket(bucket.clone()),
            Ask::Lookup { bucket, key, id } => {
                let name = |id| Name {
                    bucket: bucket.clone(),
                    key: key.clone(),
                    id,
                };
                // What is current may be the null version, and no version yet: both are seen in one state.
                let current = (*id == Some(NULL_VERSION)).then_some(None);
                Question::Named(current.into_iter().chain([*id]).map(name).collect())
            }
            Ask::List(params) => Question::List(list(params)),
            Ask::Versions(params, after_id) => Question::Versions(Versions {
                list: list(params),
                after_id: *after_id,
            }),
            Ask::Buckets { after, max } => Question::Buckets {
                after: after.clone(),
                max: *max,
            },
            Ask::Digest {
                at: entry,
                after,
                max,
            } => match self.stretch(*entry, after, *max) {
                Some((snapshot, stretch)) => {
                    at = Some(snapshot);
                    Question::Digest(stretch)
                }
                None => return self.no_digest(reader.reply_to, out),
            },
        };
        match self.ask_index_at(question, at, out) {
            index::Answer::Ready(result) => self.read_answered(reader, result, out),
            index::Answer::Pending(question) => {
                self.questions.insert(question, Why::Reader(reader));
            }
            index::Answer::Busy => {
                let result = Err(self.busy("questions to the index").into());
                let reply_to = reader.reply_to;
                out.push(Action::Answer { reply_to, result });
            }
        }
    }

    /// The index has answered a reader.
    pub(crate) fn read_answered(
        &mut self,
        mut reader: Reader,
        result: Result<Output, IndexError>,
        out: &mut Vec<Action>,
    ) {
        let result = match (result, &reader.ask) {
            (Err(error), _) => Err(self.unreadable(&error).into()),
            (Ok(Output::Objects(mut found)), Ask::Lookup { .. }) => {
                let named = found.pop().flatten();
                let current = found.pop().flatten();
                let current = current.filter(|current| current.meta.tag.is_none());
                match current.or(named) {
                    Some(found) => Ok(self.found(found, &reader)),
                    None => {
                        // Because there is no bucket, perhaps.
                        reader.absent = true;
                        return self.read(reader, out);
                    }
                }
            }
            (Ok(Output::Bucket(None)), Ask::Lookup { bucket, .. }) => Err(no_bucket(bucket)),
            (Ok(Output::Bucket(Some(_))), Ask::Lookup { bucket, key, .. }) => {
                let detail = format!("there is no object {key:?} in bucket {bucket:?}");
                Err(Refusal::new(ErrorCode::NotFound, detail).into())
            }
            (Ok(Output::List(None)), Ask::List(params)) => Err(no_bucket(&params.bucket)),
            (Ok(Output::List(Some(page))), _) => Ok(Answer::Page(page)),
            (Ok(Output::Versions(None)), Ask::Versions(params, _)) => {
                Err(no_bucket(&params.bucket))
            }
            (Ok(Output::Versions(Some(page))), _) => Ok(Answer::Versions(page)),
            (Ok(Output::Buckets { buckets, more }), _) => Ok(Answer::Buckets { buckets, more }),
            (Ok(Output::Digest(digest)), _) => Ok(Answer::Digest {
                applied: self.applied,
                digest: Some(digest),
            }),
            (Ok(other), _) => {
                let detail = format!("the index gave no answer to the question: {other:?}");
                Err(Refusal::new(ErrorCode::Internal, detail).into())
            }
        };
        let reply_to = reader.reply_to;
        out.push(Action::Answer { reply_to, result });
    }

    fn found(&self, found: index::Found, reader: &Reader) -> Answer {
        let index::Found {
            meta,
            place,
            payload,
        } = found;
        // An entry that the log still has may have moved since.
        let slot = self.log.slot(meta.version).map(|slot| InlinePlace {
            term: slot.term,
            at: slot.at,
            len: slot.len,
        });
        let place = place.map(|place| slot.unwrap_or(place));
        Answer::Found {
            place: place.map(|place| InlineRef {
                seq: meta.version,
                term: place.term,
                at: place.at,
                len: place.len,
            }),
            meta,
            payload,
            as_of: reader.as_of,
            config: reader.config,
        }
    }

    /// The highest entry that it received for any key of this slot, and the composition that it
    /// speaks for. None: the chain is changing, it is no member, or it does not know what it received
    /// before its start.
    pub fn witness(&self, slot: u32) -> (Option<u64>, Seq) {
        let chain = self.log.chain();
        let knows = self.log.is_whole() && !(self.bare && self.promise.doubtful);
        let knows = knows || mutant!(self, WitnessSpeaksEarly);
        let works = matches!(self.role, Role::Follower | Role::Starting | Role::Head)
            && self.stopped.is_none();
        let speaks = works
            && knows
            && chain.settled()
            && chain.contains(self.config.me)
            && !self.has_nothing();
        (speaks.then_some(chain.config), self.witness.highest(slot))
    }

    /// The chain as it knows it.
    pub fn view(&self, now: Instant) -> ChainView {
        let (term, chain) = self.named();
        ChainView {
            term,
            serving: self.serving(now),
            committed: self.committed,
            config: chain.config,
            members: chain.members.clone(),
        }
    }

    /// The reign and the composition that [`Replica::view`] names.
    pub fn reign(&self) -> (Term, u64) {
        let (term, chain) = self.named();
        (term, chain.config)
    }

    /// Clients believe a head in office, and what it names must not be taken back. Everybody else tells whom there may
    /// be to talk to.
    fn named(&self) -> (Term, &Chain) {
        if self.in_office() {
            // Others may have begun another reign, in vain: its own is the one to be named.
            (self.term, self.log.chain_at(self.committed))
        } else {
            (self.term.max(self.seen), self.log.chain())
        }
    }

    /// How it is doing.
    pub fn status(&self) -> ReplicaStatus {
        let role = match self.role {
            Role::Head => "head",
            Role::Starting => "candidate",
            _ if self.retired => "retired",
            Role::Replaying | Role::Follower if !self.log.chain().contains(self.config.me) => {
                "learner"
            }
            Role::Replaying | Role::Follower => "follower",
        };
        ReplicaStatus {
            partition: self.config.partition,
            role: role.to_owned(),
            state: self.state(),
            term: self.term,
            last: self.log.last(),
            committed: self.committed,
            objects: self.index.stats().objects,
        }
    }

    fn state(&self) -> String {
        if let Some(stopped) = &self.stopped {
            return format!("stopped: {}", stopped.detail);
        }
        match self.role {
            Role::Replaying => "replaying".to_owned(),
            Role::Starting => self.starting_state(),
            Role::Head if self.head.stuck => {
                "serving reads only: its device had no room for the journal".to_owned()
            }
            Role::Head if self.head.serving => "serving".to_owned(),
            Role::Head => format!(
                "waiting for entry {} to be durable on {} replicas and applied (durable here up to \
                 {}, committed {}, applied {}; away: {})",
                self.head.term_start,
                self.log.chain().quorum(),
                self.log.durable(),
                self.committed,
                self.applied,
                self.away(),
            ),
            Role::Follower if self.is_unborn() => "waiting for what it is to be made of".to_owned(),
            Role::Follower if self.retired => "no member of the chain any more".to_owned(),
            Role::Follower if self.learning.is_some() => "learning a snapshot".to_owned(),
            Role::Follower if self.follower.sealed => "following".to_owned(),
            Role::Follower if self.promise.doubtful => format!(
                "waiting for all other members, since its device may have lost what it promised; \
                 away: {}",
                self.away()
            ),
            Role::Follower => format!("waiting for a head; away: {}", self.away()),
        }
    }

    /// Members that cannot be reached, for a person.
    pub(crate) fn away(&self) -> String {
        let members = self.members_but_me().into_iter();
        let away: Vec<String> = members
            .filter(|peer: &DeviceNo| !self.is_up(*peer))
            .map(|peer| peer.to_string())
            .collect();
        if away.is_empty() {
            "none".to_owned()
        } else {
            format!("replicas {}", away.join(", "))
        }
    }

    /// Whether it is the head in office of this reign.
    pub(crate) fn check_reign(&self, term: Term) -> Result<(), Refusal> {
        if self.in_office() && term == self.term {
            return Ok(());
        }
        let partition = self.config.partition;
        let detail = if self.in_office() {
            let own = self.term;
            format!("partition {partition}: this is the head of reign {own}, not of {term}")
        } else {
            let state = self.state();
            format!("this replica of partition {partition} is no head in office; it is {state}")
        };
        Err(Refusal::new(ErrorCode::NotHead, detail))
    }

    /// Whether what it knows is still the truth.
    pub(crate) fn check_lease(&self, now: Instant) -> Result<(), Refusal> {
        if self.lease_holds(now) {
            return Ok(());
        }
        let detail = format!(
            "partition {}: its head has not heard from enough replicas lately; away: {}",
            self.config.partition,
            self.away()
        );
        Err(Refusal::new(ErrorCode::NotServing, detail))
    }

    fn check_serving(&self, now: Instant) -> Result<(), Refusal> {
        self.check_reign(self.term)?;
        self.check_lease(now)
    }
}

fn list(params: &ListParams) -> List {
    List {
        bucket: params.bucket.clone(),
        prefix: params.prefix.clone(),
        delimiter: params.delimiter.clone(),
        after: params.after.clone(),
        max: params.max,
    }
}

fn no_bucket(bucket: &str) -> WireError {
    Refusal::new(
        ErrorCode::NoSuchBucket,
        format!("there is no bucket {bucket:?}"),
    )
    .into()
}

//! What a replica can be asked: reads at the head, and how it stands.
//!
//! Invariants:
//! - reads are answered by a head in office, within its lease, from what is committed and applied;
//! - a witness says nothing rather than something that may be too low.

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::{
    BucketMeta, ChainView, ErrorCode, ListPage, ObjectMeta, ReplicaStatus, WireError,
};
use ashlar_layout::time::Instant;

use crate::api::{InlineRef, ListParams};
use crate::list;
use crate::mutants::mutant;
use crate::pending::Refusal;
use crate::replica::{Replica, Role};

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
            Role::Follower => self.follower.sealed || !self.log.chain().contains(self.config.me),
            Role::Replaying | Role::Starting => false,
        }
    }

    /// An object, and where its entry is if its payload is inline; and what a cache needs to have it
    /// confirmed by witnesses: the last entry that was applied then, and the chain's composition.
    pub fn lookup(
        &self,
        now: Instant,
        bucket: &str,
        key: &str,
    ) -> Result<(ObjectMeta, Option<InlineRef>, Seq, u64), WireError> {
        self.check_serving(now)?;
        let Some(objects) = self.index.bucket(bucket) else {
            return Err(no_bucket(bucket));
        };
        let Some(object) = objects.get(key) else {
            let detail = format!("there is no object {key:?} in bucket {bucket:?}");
            return Err(Refusal::new(ErrorCode::NotFound, detail).into());
        };
        // A composition that is not committed may be taken back, and its number given to another one.
        let config = self.log.chain_at(self.committed).config;
        Ok((object.meta(), self.inline_ref(object), self.applied, config))
    }

    /// A page of a listing.
    pub fn list(&self, now: Instant, params: &ListParams) -> Result<ListPage, WireError> {
        self.check_serving(now)?;
        let objects = self.index.bucket(&params.bucket);
        let objects = objects.ok_or_else(|| no_bucket(&params.bucket))?;
        Ok(list::page(objects, params))
    }

    /// At most `max` buckets after this name, and whether there are more.
    pub fn list_buckets(
        &self,
        now: Instant,
        after: &str,
        max: u32,
    ) -> Result<(Vec<BucketMeta>, bool), WireError> {
        self.check_serving(now)?;
        Ok(self.index.buckets(after, max))
    }

    /// The highest entry that it received for any key of this slot, and the composition that it
    /// speaks for. None: the chain is changing, it is no member, or it does not know what it received
    /// before its start.
    pub fn witness(&self, slot: u32) -> (Option<u64>, Seq) {
        let chain = self.log.chain();
        let knows = self.log.is_whole() || mutant!(self, WitnessSpeaksEarly);
        let works = matches!(self.role, Role::Follower | Role::Starting | Role::Head)
            && self.stopped.is_none();
        let speaks = works && knows && chain.settled() && chain.contains(self.config.me);
        (speaks.then_some(chain.config), self.witness.highest(slot))
    }

    /// The chain as it knows it.
    pub fn view(&self, now: Instant) -> ChainView {
        // Clients believe a head in office, and what it names must not be taken back. Everybody else tells
        // whom there may be to talk to.
        let chain = if self.in_office() {
            self.log.chain_at(self.committed)
        } else {
            self.log.chain()
        };
        ChainView {
            // Others may have begun another reign, in vain: its own is the one to be named.
            term: match self.in_office() {
                true => self.term,
                false => self.term.max(self.seen),
            },
            serving: self.serving(now),
            committed: self.committed,
            config: chain.config,
            members: chain.members.clone(),
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
            objects: self.index.objects(),
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
            Role::Follower if self.retired => "no member of the chain any more".to_owned(),
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

fn no_bucket(bucket: &str) -> WireError {
    Refusal::new(
        ErrorCode::NoSuchBucket,
        format!("there is no bucket {bucket:?}"),
    )
    .into()
}

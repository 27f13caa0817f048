//! Lifecycle rules, kept and carried out.
//!
//! Invariants:
//! - what is removed is the version of an object that was looked at, with the tags and the age that the rules
//!   are about: one that is written meanwhile stays. So gateways that go through a bucket at once do no harm;
//! - whether a bucket keeps versions is asked before each removal, and what is current and a version is never removed
//!   but by a marker; how those behind it end is in [`crate::aging`];
//! - one at a time does, as a rule: whoever does has said so in the bucket's record
//!   ([`ashlar_cluster_s3::sweep`]), and goes on only while that stands;
//! - it takes a bounded share of the store: one object after another, not faster than [`PACE`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_s3::calendar::http_date;
use ashlar_cluster_s3::lifecycle::{
    LifecycleRule, Subject, expires, may_have_ended, upload_expires,
};
use ashlar_cluster_s3::lifecycle_document::{parse_lifecycle, write_lifecycle};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::sweep::{
    RENEW_MS, SWEEPS, SweepRecord, Tally, common_prefix, fingerprint, sweep_key,
};
use ashlar_cluster_s3::system::{BUCKETS, uploads_prefix};
use ashlar_cluster_s3::text::url_encode;
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Etag, Precondition};
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::{Client, Code as Store, ListOptions};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::directory::{OpenBucket, read_document, reserved, write_document};
use crate::faults::{internal, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, modified_ms, now_ms, random};
use crate::inbound::Inbound;
use crate::options::LogEntry;
use crate::reply::{Reply, RequestId};
use crate::versions::Keeping;

/// How often buckets are looked at whose rules may be due.
const LOOK: Duration = Duration::from_secs(60);
/// At the least so long from one removal to the next.
const PACE: Duration = Duration::from_millis(2);
/// How often parts are looked for that nobody waits for.
const PARTS: Duration = Duration::from_secs(60 * 60);

/// By how much clocks may differ.
const SKEW_MS: u64 = 15 * 60 * 1000;

/// How going through a bucket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All of it was looked at.
    Whole,
    /// Somebody else has the bucket, or its rules are others now.
    Lost,
}

/// Who has a bucket to go through it; nobody, if that is not recorded.
#[derive(Debug)]
pub(crate) struct Lease {
    key: String,
    held: Option<(SweepRecord, Seq)>,
    renewed_ms: u64,
    pub(crate) tally: Tally,
}

impl Lease {
    fn unrecorded() -> Lease {
        Lease {
            key: String::new(),
            held: None,
            renewed_ms: now_ms(),
            tally: Tally::default(),
        }
    }

    /// Behind which object to go on; none if all were looked at.
    pub(crate) fn after(&self) -> Option<String> {
        match &self.held {
            None => Some(String::new()),
            Some((record, _)) => record.going.as_ref().and_then(|going| going.after.clone()),
        }
    }

    /// Says where it is, if it is time to. False if somebody else has the bucket.
    pub(crate) async fn go_on(
        &mut self,
        store: &Client,
        after: Option<&str>,
    ) -> Result<bool, Refusal> {
        let now = now_ms();
        if now.saturating_sub(self.renewed_ms) < RENEW_MS {
            return Ok(true);
        }
        self.renewed_ms = now;
        let Some((record, _)) = &mut self.held else {
            return Ok(true);
        };
        record.go_on(after.map(str::to_owned), self.tally, now);
        self.write(store).await
    }

    async fn write(&mut self, store: &Client) -> Result<bool, Refusal> {
        let Some((record, version)) = &mut self.held else {
            return Ok(true);
        };
        let only = Precondition::Version(*version);
        match write_document(store, &self.key, record.encode()?, Etag::NONE, only).await {
            Ok(written) => {
                *version = written;
                Ok(true)
            }
            Err(error) if error.code() == Store::PreconditionFailed => Ok(false),
            Err(error) => Err(refusal(&error)),
        }
    }
}

/// How fast things that nobody asked for are done.
pub(crate) fn pace() -> Interval {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

/// What is told of when an object ends, if it does.
pub(crate) fn expiration_header(
    open: Option<&Arc<OpenBucket>>,
    subject: &Subject<'_>,
) -> Option<String> {
    let (at, rule) = expires(&open?.config.lifecycle, subject)?;
    Some(format!(
        "expiry-date=\"{}\", rule-id=\"{}\"",
        http_date(at),
        url_encode(rule)
    ))
}

impl Gateway {
    /// GetBucketLifecycleConfiguration, PutBucketLifecycleConfiguration, DeleteBucketLifecycle.
    pub(crate) async fn bucket_lifecycle(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        match operation {
            Operation::GetBucketLifecycleConfiguration => match &context.access.bucket {
                Some(open) if !open.config.lifecycle.is_empty() => {
                    Ok(Reply::xml(write_lifecycle(&open.config.lifecycle)))
                }
                _ => refused(
                    Code::NoSuchLifecycleConfiguration,
                    "The lifecycle configuration does not exist",
                ),
            },
            Operation::PutBucketLifecycleConfiguration => {
                let seed = u64::from_le_bytes(random()?);
                let parse = |document: &[u8]| parse_lifecycle(document, seed);
                self.take(context, body, parse, |config, rules| {
                    config.lifecycle.clone_from(rules);
                })
                .await?;
                self.rules_changed.notify_one();
                Ok(Reply::ok())
            }
            _ => self.reset(context, |config| config.lifecycle.clear()).await,
        }
    }

    /// Carries out the lifecycle rules of all buckets as they become due. It does not end by itself, and may
    /// be dropped at any time.
    pub async fn keep_lifecycles(self: Arc<Self>) {
        let mut known = HashMap::new();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut parts_at, mut parts_from) = (Instant::now(), String::new());
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = self.rules_changed.notified() => {}
            }
            if let Err(refusal) = self.end_appends(now_ms()).await {
                self.tell_of("/", &refusal);
            }
            if parts_at <= Instant::now() {
                parts_at = Instant::now() + PARTS;
                if let Err(refusal) = self.end_parts(now_ms(), &mut parts_from).await {
                    self.tell_of("/", &refusal);
                }
            }
            match self.with_rules(&mut known).await {
                Err(refusal) => self.tell_of("/", &refusal),
                Ok(buckets) => {
                    for bucket in buckets {
                        if let Err(refusal) = self.sweep(&bucket).await {
                            self.tell_of(&bucket, &refusal);
                        }
                    }
                }
            }
        }
    }

    /// Tells the log what went wrong that nobody had asked for.
    pub(crate) fn tell_of(&self, bucket: &str, refusal: &Refusal) {
        let id = RequestId::new(self.number, 0);
        (self.options.log.0)(&LogEntry {
            request_id: &id.id,
            peer: "-",
            user: None,
            method: "-",
            path: bucket,
            operation: Some("Lifecycle"),
            status: 500,
            refusal: Some((refusal.code.as_str(), &*refusal.message)),
            micros: 0,
        });
    }

    /// The buckets that have rules. `known`: which versions of their documents were read, and whether there
    /// are rules in them.
    async fn with_rules(
        &self,
        known: &mut HashMap<String, (Seq, bool)>,
    ) -> Result<Vec<String>, Refusal> {
        let mut seen = HashMap::new();
        let mut after = String::new();
        loop {
            let page = reserved(&self.store, BUCKETS, after).await?;
            for entry in page.objects {
                let Some(bucket) = entry.key.strip_prefix(BUCKETS) else {
                    continue;
                };
                let read = known
                    .get(bucket)
                    .filter(|(version, _)| *version == entry.version);
                let found = match read {
                    Some(known) => *known,
                    // As it is by now: what is kept may be of before the list.
                    None => match self.directory.ask_bucket(bucket).await {
                        Ok((Some(open), _)) => (open.version, !open.config.lifecycle.is_empty()),
                        Ok((None, _)) => (entry.version, false),
                        // One that cannot be read keeps no other from its rules.
                        Err(refusal) => {
                            self.tell_of(bucket, &refusal);
                            continue;
                        }
                    },
                };
                seen.insert(bucket.to_owned(), found);
            }
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        *known = seen;
        let mut buckets: Vec<String> = known
            .iter()
            .filter(|(_, (_, has))| *has)
            .map(|(bucket, _)| bucket.clone())
            .collect();
        buckets.sort_unstable();
        Ok(buckets)
    }

    /// Goes through a bucket, if that is due and nobody else does.
    async fn sweep(&self, bucket: &str) -> Result<(), Refusal> {
        let Some(open) = self.directory.bucket(bucket).await? else {
            return Ok(());
        };
        if open.config.lifecycle.is_empty() {
            return Ok(());
        }
        let key = sweep_key(bucket);
        let found = read_document(&self.store, &key).await;
        let (record, precondition) = match found.map_err(|error| refusal(&error))? {
            Some((meta, bytes)) => (
                SweepRecord::decode(&bytes).map_err(internal)?,
                Precondition::Version(meta.version),
            ),
            None => (SweepRecord::default(), Precondition::Absent),
        };
        let now = now_ms();
        let Some(taken) = record.take(self.number, fingerprint(&open.config), now) else {
            return Ok(());
        };
        let tally = taken.going.as_ref().map(|going| going.tally);
        let bytes = taken.encode()?;
        let version = write_document(&self.store, &key, bytes, Etag::NONE, precondition).await;
        let version = match version {
            Ok(version) => version,
            Err(error) if error.code() == Store::PreconditionFailed => return Ok(()),
            Err(error) => return Err(refusal(&error)),
        };
        // What ends is decided by two clocks: this one, and that of who keeps the journal.
        let written = self.store.head(SYSTEM_BUCKET, &key).await;
        let written_ms = written.map_err(|error| refusal(&error))?.modified_ms;
        if now.abs_diff(written_ms) > SKEW_MS {
            let message = format!(
                "the clocks of this gateway and of the store are {} s apart: lifecycle rules are not carried out",
                now.abs_diff(written_ms) / 1000
            );
            return Err(internal(message));
        }
        let mut lease = Lease {
            key,
            held: Some((taken, version)),
            renewed_ms: now,
            tally: tally.unwrap_or_default(),
        };
        let ended = self.go_through(bucket, &open, now, &mut lease).await?;
        if ended == End::Whole
            && let Some((record, _)) = &mut lease.held
        {
            record.end(lease.tally, now_ms());
            // Somebody else may have taken it for gone: then that one ends it.
            lease.write(&self.store).await?;
        }
        Ok(())
    }

    /// Goes through all buckets as if it was another time, and records nothing: so tests move the clock.
    pub async fn go_through_at(&self, now_ms: u64) -> Result<Tally, Refusal> {
        let mut all = Tally {
            aborted: self.end_appends(now_ms).await?,
            ..Tally::default()
        };
        all.aborted += self.end_parts(now_ms, &mut String::new()).await?;
        for bucket in self.with_rules(&mut HashMap::new()).await? {
            let Some(open) = self.directory.bucket(&bucket).await? else {
                continue;
            };
            let mut lease = Lease::unrecorded();
            self.go_through(&bucket, &open, now_ms, &mut lease).await?;
            all.seen += lease.tally.seen;
            all.removed += lease.tally.removed;
            all.aborted += lease.tally.aborted;
            all.failed += lease.tally.failed;
        }
        Ok(all)
    }

    async fn go_through(
        &self,
        bucket: &str,
        open: &OpenBucket,
        now_ms: u64,
        lease: &mut Lease,
    ) -> Result<End, Refusal> {
        let rules = &open.config.lifecycle;
        let mut pace = pace();
        let keeps = Keeping::of(Some(open)) != Keeping::Off;
        if let Some(prefix) = common_prefix(rules).filter(|_| keeps) {
            let paced = (prefix, &mut pace);
            if self
                .end_versions(bucket, open, now_ms, lease, paced)
                .await?
                == End::Lost
            {
                return Ok(End::Lost);
            }
        } else if let (Some(prefix), Some(mut after)) = (common_prefix(rules), lease.after()) {
            loop {
                if self.still_asks(bucket, open).await?.is_none() {
                    return Ok(End::Lost);
                }
                let options = ListOptions {
                    prefix: prefix.to_owned(),
                    after,
                    ..ListOptions::default()
                };
                let page = match self.store.list(bucket, options).await {
                    Ok(page) => page,
                    Err(error) if error.code() == Store::NoSuchBucket => return Ok(End::Lost),
                    Err(error) => return Err(refusal(&error)),
                };
                for entry in page.objects {
                    lease.tally.seen += 1;
                    // An object whose tags were changed is listed with the time of that: it is looked at later.
                    if may_have_ended(rules, &entry.key, entry.size, entry.modified_ms, now_ms) {
                        pace.tick().await;
                        let ended = self.end_object(bucket, &entry.key, open, now_ms).await;
                        let ended = ended.map(u64::from);
                        lease.tally.removed += self.unless_failed(bucket, ended, lease);
                    }
                    if !lease.go_on(&self.store, Some(&entry.key)).await? {
                        return Ok(End::Lost);
                    }
                }
                match page.next {
                    Some(next) => after = next,
                    None => break,
                }
            }
        }
        let aborts = |rule: &LifecycleRule| rule.enabled && rule.abort_days.is_some();
        if rules.iter().any(aborts) {
            return self
                .end_uploads(bucket, open, now_ms, lease, &mut pace)
                .await;
        }
        Ok(End::Whole)
    }

    /// How many ended. A failure is counted and told of: what cannot be read keeps nothing else from its rules.
    pub(crate) fn unless_failed(
        &self,
        bucket: &str,
        ended: Result<u64, Refusal>,
        lease: &mut Lease,
    ) -> u64 {
        ended.unwrap_or_else(|refusal| {
            lease.tally.failed += 1;
            self.tell_of(bucket, &refusal);
            0
        })
    }

    /// Whether a bucket is still the one, with the rules, that are being carried out.
    pub(crate) async fn still_asks(
        &self,
        bucket: &str,
        open: &OpenBucket,
    ) -> Result<Option<Keeping>, Refusal> {
        let now = self.directory.bucket(bucket).await?;
        let now = now.filter(|now| fingerprint(&now.config) == fingerprint(&open.config));
        Ok(now.map(|now| Keeping::of(Some(&now))))
    }

    /// Removes an object, if its time has come. Whether it was there, and was.
    pub(crate) async fn end_object(
        &self,
        bucket: &str,
        key: &str,
        open: &OpenBucket,
        now_ms: u64,
    ) -> Result<bool, Refusal> {
        let meta = match self.store.head(bucket, key).await {
            Ok(meta) => meta,
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(refusal(&error)),
        };
        let found = attributes(&meta)?;
        let subject = Subject {
            key,
            size: meta.manifest.size,
            tags: &found.tags,
            modified_ms: modified_ms(&meta, &found),
        };
        if expires(&open.config.lifecycle, &subject).is_none_or(|(at, _)| at > now_ms) {
            return Ok(false);
        }
        let Some(keeping) = self.still_asks(bucket, open).await? else {
            return Ok(false);
        };
        let precondition = Precondition::Version(meta.version);
        if keeping == Keeping::Off && meta.tag.is_some() {
            // It is a version, so the bucket keeps them by now: the next time it is looked at.
            return Ok(false);
        }
        match self.take_away(bucket, key, precondition, keeping).await {
            Ok(_) => Ok(true),
            // It is another object now.
            Err(error) if error.code() == Store::PreconditionFailed || is_absent(&error) => {
                Ok(false)
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    /// Gives up the upload whose record has this key, if its time has come. Whether it was, and did.
    async fn end_upload(
        &self,
        bucket: &str,
        key: &str,
        open: &OpenBucket,
        now_ms: u64,
        pace: &mut Interval,
    ) -> Result<bool, Refusal> {
        let Some(upload) = self.listed(bucket, key).await? else {
            return Ok(false);
        };
        let record = &upload.record;
        let at = upload_expires(&open.config.lifecycle, &record.key, record.begun_ms);
        if at.is_none_or(|(at, _)| at > now_ms) {
            return Ok(false);
        }
        pace.tick().await;
        match self.abort(upload).await {
            Ok(()) => Ok(true),
            // It is being put together.
            Err(refusal) if refusal.code == Code::OperationAborted => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// Gives up the uploads whose time has come.
    async fn end_uploads(
        &self,
        bucket: &str,
        open: &OpenBucket,
        now_ms: u64,
        lease: &mut Lease,
        pace: &mut Interval,
    ) -> Result<End, Refusal> {
        let mut after = String::new();
        loop {
            if self.still_asks(bucket, open).await?.is_none() {
                return Ok(End::Lost);
            }
            let page = reserved(&self.store, uploads_prefix(bucket, ""), after).await?;
            for entry in page.objects {
                lease.tally.seen += 1;
                let ended = self
                    .end_upload(bucket, &entry.key, open, now_ms, pace)
                    .await;
                let ended = ended.map(u64::from);
                lease.tally.aborted += self.unless_failed(bucket, ended, lease);
                if !lease.go_on(&self.store, None).await? {
                    return Ok(End::Lost);
                }
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(End::Whole),
            }
        }
    }
}

/// What is recorded of buckets' lifecycles, by bucket.
pub async fn records(client: &Client) -> Result<Vec<(String, SweepRecord)>, Refusal> {
    let (mut records, mut after) = (Vec::new(), String::new());
    loop {
        let page = reserved(client, SWEEPS, after).await?;
        for entry in page.objects {
            let found = read_document(client, &entry.key).await;
            if let Some((_, bytes)) = found.map_err(|error| refusal(&error))? {
                let bucket = entry.key.strip_prefix(SWEEPS).unwrap_or(&entry.key);
                let record = SweepRecord::decode(&bytes).map_err(internal)?;
                records.push((bucket.to_owned(), record));
            }
        }
        match page.next {
            Some(next) => after = next,
            None => return Ok(records),
        }
    }
}

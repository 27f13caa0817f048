//! Locks of versions: asked for, told, changed.
//!
//! Invariants:
//! - whether a lock lets something be done is the journal's to say, when it is done; nothing is removed here because it
//!   looked as if nothing kept it;
//! - who may pass by governance is asked here, before the journal is told so;
//! - a lock is changed of the version that was found: if it, or its lock, is another one by now, it is looked at again;
//! - who was let into a bucket is let into that one: not into another one that has its name by now.

use std::time::Instant;

use ashlar_cluster_s3::bucket::{BucketConfig, Versioning};
use ashlar_cluster_s3::calendar::iso_date;
use ashlar_cluster_s3::object_lock::{
    ObjectLock, hold_name, mode_name, parse_configuration, parse_headers, parse_legal_hold,
    parse_retention, remaining_days, write_configuration, write_legal_hold, write_retention,
};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_layout::lock::{Lock, Retention};
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{Code as Store, Making};

use crate::access::{Access, denied};
use crate::call::Call;
use crate::directory::OpenBucket;
use crate::faults::{busy, internal, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway};
use crate::inbound::Inbound;
use crate::reply::Reply;
use crate::versions::{Keeping, STANDS, asked_version, set_version};

/// So often a change is tried again that others got in the way of.
const TRIES: usize = 8;

const MODE: &str = "x-amz-object-lock-mode";
const UNTIL: &str = "x-amz-object-lock-retain-until-date";
const HOLD: &str = "x-amz-object-lock-legal-hold";

/// What passing by governance is called by policies.
const BYPASS: &str = "s3:BypassGovernanceRetention";

/// What a bucket wants of what is put into it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) keeping: Keeping,
    lock: Option<ObjectLock>,
    /// Whose it is, and which entry of the journal made it; nobody's, and none, if it was not made through S3.
    whose: (String, u64),
}

impl Kept {
    pub(crate) fn of(bucket: Option<&OpenBucket>) -> Kept {
        Kept {
            keeping: Keeping::of(bucket),
            lock: bucket.and_then(|open| open.config.object_lock),
            whose: bucket
                .map(|open| (open.config.owner.clone(), open.config.made_by))
                .unwrap_or_default(),
        }
    }

    /// The same as it is `now`; refused, if the name is another bucket's by now, or nobody's.
    fn still(&self, now: Kept) -> Result<Kept, Refusal> {
        match now.whose == self.whose {
            true => Ok(now),
            false => refused(Code::NoSuchBucket, "The specified bucket does not exist"),
        }
    }

    /// How something is put there now, if this lock is asked for.
    pub(crate) fn making(&self, asked: Lock, now_ms: u64) -> Result<Making, Refusal> {
        let lock = match self.lock {
            None if asked.is_none() => Lock::NONE,
            None => return without_locks(),
            Some(bucket) => bucket.of_new(asked, now_ms),
        };
        match self.keeping {
            Keeping::Off if lock.is_none() => Ok(Making::Object),
            // Nobody can have made it so.
            Keeping::Off => Err(internal("a bucket with locks that keeps no versions")),
            keeping => Ok(Making::Version {
                null: keeping == Keeping::Suspended,
                lock,
            }),
        }
    }
}

impl Context {
    /// What the bucket wanted when the request was let in, and not before when that was asked.
    pub(crate) fn known(&self) -> (Kept, Instant) {
        (Kept::of(self.access.bucket.as_deref()), self.asked)
    }
}

fn without_locks<T>() -> Result<T, Refusal> {
    refused(
        Code::InvalidRequest,
        "Bucket is missing Object Lock Configuration",
    )
}

fn check_locks(context: &Context) -> Result<(), Refusal> {
    let open = context.access.bucket.as_ref();
    match open.and_then(|open| open.config.object_lock) {
        Some(_) => Ok(()),
        None => without_locks(),
    }
}

/// The lock that a request's headers name.
fn named_lock(call: &Call, now_ms: u64) -> Result<Lock, Refusal> {
    let header = |name| call.header(name);
    parse_headers(header(MODE), header(UNTIL), header(HOLD), now_ms)
}

/// The lock that a put asks for, if its bucket has any.
pub(crate) fn asked_lock(context: &Context, call: &Call) -> Result<Lock, Refusal> {
    let lock = named_lock(call, context.now_ms)?;
    if !lock.is_none() {
        check_locks(context)?;
    }
    Ok(lock)
}

/// Refuses a put that asks for a lock which the caller may not set.
pub(crate) fn authorize_lock(access: &mut Access, call: &Call, now_ms: u64) -> Result<(), Refusal> {
    let lock = named_lock(call, now_ms)?;
    // All of it is said before anything is asked: a policy may look at one because of the other.
    if let Some(retention) = &lock.retention {
        say_retention(access, retention, now_ms);
    }
    if let Some(held) = lock.hold {
        access.say("s3:object-lock-legal-hold", hold_name(held));
    }
    if lock.retention.is_some() {
        access.check("s3:PutObjectRetention", &call.arn())?;
    }
    match lock.hold {
        Some(_) => access.check("s3:PutObjectLegalHold", &call.arn()),
        None => Ok(()),
    }
}

/// Says what policies look at.
fn say_retention(access: &mut Access, retention: &Retention, now_ms: u64) {
    access.say("s3:object-lock-mode", mode_name(retention.mode));
    let until = iso_date(retention.until_ms);
    access.say("s3:object-lock-retain-until-date", &until);
    let days = remaining_days(retention.until_ms, now_ms);
    access.say("s3:object-lock-remaining-retention-days", &days.to_string());
}

/// Whether the caller asks to pass by governance.
pub(crate) fn asks_bypass(call: &Call) -> bool {
    let asks = call.header("x-amz-bypass-governance-retention");
    asks.is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

/// Refuses to pass by governance, if that is not allowed.
pub(crate) fn check_bypass(access: &Access, resource: &str) -> Result<(), Refusal> {
    access.check(BYPASS, resource)
}

/// Whether the caller asks to pass by governance; refused if that is not allowed.
pub(crate) fn bypass(access: &Access, call: &Call, resource: &str) -> Result<bool, Refusal> {
    let asks = asks_bypass(call);
    if asks {
        check_bypass(access, resource)?;
    }
    Ok(asks)
}

/// What keeps an object, or a version of one.
fn lock_of(meta: &ObjectMeta) -> Lock {
    meta.tag.map_or(Lock::NONE, |tag| tag.lock)
}

/// Says what keeps an object, as far as the caller may know.
pub(crate) fn set_lock(reply: &mut Reply, context: &Context, meta: &ObjectMeta) {
    let lock = lock_of(meta);
    let may = |action| context.access.may(action, &context.call.arn());
    if let Some(retention) = lock.retention
        && may("s3:GetObjectRetention")
    {
        reply.set(MODE, mode_name(retention.mode));
        reply.set(UNTIL, &iso_date(retention.until_ms));
    }
    if let Some(held) = lock.hold
        && may("s3:GetObjectLegalHold")
    {
        reply.set(HOLD, hold_name(held));
    }
}

/// Whether a new bucket is to have locks.
pub(crate) fn wants_locks(call: &Call) -> Result<bool, Refusal> {
    match call.header("x-amz-bucket-object-lock-enabled") {
        None => Ok(false),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => refused(
            Code::InvalidArgument,
            "x-amz-bucket-object-lock-enabled is either true or false",
        ),
    }
}

impl Gateway {
    /// What a bucket wants of what is put into it by now, if it is still the one that a request was let into. That may
    /// have taken an hour to come, and the bucket may be somebody else's since. If it is removed and made again in the
    /// milliseconds between this and what is then proposed, nobody sees that: the journal knows names only.
    pub(crate) async fn still_kept(
        &self,
        bucket: &str,
        (kept, asked): (Kept, Instant),
    ) -> Result<Kept, Refusal> {
        if asked.elapsed() < STANDS {
            return Ok(kept);
        }
        let open = self.directory.bucket(bucket).await?;
        kept.still(Kept::of(open.as_deref()))
    }

    /// GetObjectLockConfiguration, PutObjectLockConfiguration.
    pub(crate) async fn bucket_object_lock(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        if operation == Operation::GetObjectLockConfiguration {
            let open = context.access.bucket.as_ref();
            return match open.and_then(|open| open.config.object_lock) {
                Some(lock) => Ok(Reply::xml(write_configuration(&lock))),
                None => refused(
                    Code::ObjectLockConfigurationNotFoundError,
                    "Object Lock configuration does not exist for this bucket",
                ),
            };
        }
        let document = self.document(context, body).await?;
        let lock = parse_configuration(&document)?;
        let change = |config: &mut BucketConfig| {
            if config.versioning != Some(Versioning::Enabled) {
                return refused(
                    Code::InvalidBucketState,
                    "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration",
                );
            }
            config.object_lock = Some(lock);
            Ok(())
        };
        self.change(context, change).await?;
        Ok(Reply::ok())
    }

    /// GetObjectRetention, PutObjectRetention, GetObjectLegalHold, PutObjectLegalHold.
    pub(crate) async fn object_lock(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        check_locks(context)?;
        match operation {
            Operation::PutObjectRetention => {
                let document = self.document(context, body).await?;
                let retention = parse_retention(&document, context.now_ms)?;
                let mut context = context.clone();
                let access = &mut context.access;
                if let Some(retention) = &retention {
                    say_retention(access, retention, context.now_ms);
                }
                if !access.may_wait(operation.action(), &call.arn()) {
                    return denied();
                }
                let bypass = bypass(access, call, &call.arn())?;
                if bypass && access.looks_at_existing_tags() {
                    access.waiting.push(BYPASS);
                }
                let set = |lock: Lock| Lock { retention, ..lock };
                self.relock(&context, set, bypass).await
            }
            Operation::PutObjectLegalHold => {
                let document = self.document(context, body).await?;
                let held = parse_legal_hold(&document)?;
                let mut context = context.clone();
                let access = &mut context.access;
                access.say("s3:object-lock-legal-hold", hold_name(held));
                if !access.may_wait(operation.action(), &call.arn()) {
                    return denied();
                }
                let set = |lock: Lock| Lock {
                    hold: Some(held),
                    ..lock
                };
                self.relock(&context, set, false).await
            }
            operation => {
                let meta = self.find(context).await?;
                let Lock { retention, hold } = lock_of(&meta);
                let document = match operation {
                    Operation::GetObjectRetention => retention.as_ref().map(write_retention),
                    _ => hold.map(write_legal_hold),
                };
                let Some(document) = document else {
                    return refused(
                        Code::NoSuchObjectLockConfiguration,
                        "The specified object does not have a ObjectLock configuration",
                    );
                };
                let mut reply = Reply::xml(document);
                set_version(&mut reply, context.keeping(), &meta);
                Ok(reply)
            }
        }
    }

    /// Gives the version that a request is about another lock.
    async fn relock(
        &self,
        context: &Context,
        set: impl Fn(Lock) -> Lock,
        bypass: bool,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        let asked = asked_version(call)?;
        self.still_kept(&call.bucket, context.known()).await?;
        for _ in 0..TRIES {
            let (meta, current) = self.to_be_changed(context, asked).await?;
            let before = lock_of(&meta);
            let lock = set(before);
            let mut reply = Reply::ok();
            set_version(&mut reply, context.keeping(), &meta);
            if lock == before {
                return Ok(reply);
            }
            let (bucket, key) = (&call.bucket, &call.key);
            let locked = self
                .store
                .lock_version(bucket, key, (meta, current), lock, bypass)
                .await;
            match locked {
                Ok(_) => return Ok(reply),
                // It is another one by now, or is gone, or has another lock.
                Err(error) if error.code() == Store::PreconditionFailed || is_absent(&error) => {}
                Err(error) => return Err(refusal(&error)),
            }
        }
        busy()
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::Seq;

    use super::*;

    fn open(owner: &str, made_by: u64) -> OpenBucket {
        OpenBucket {
            version: Seq(made_by),
            config: BucketConfig::new(owner, made_by),
            policy: None,
        }
    }

    #[test]
    fn who_was_let_into_a_bucket_is_not_let_into_the_next_one() {
        let (ada, later) = (open("111111111111", 5), open("111111111111", 9));
        let bob = open("222222222222", 5);
        let known = Kept::of(Some(&ada));
        let mut versioned = open("111111111111", 5);
        versioned.config.versioning = Some(Versioning::Enabled);
        let still = known.still(Kept::of(Some(&versioned)));
        assert_eq!(still.map(|kept| kept.keeping), Ok(Keeping::Enabled));
        for other in [Some(&later), Some(&bob), None] {
            let gone = known.still(Kept::of(other)).map(drop).unwrap_err();
            assert_eq!(gone.code, Code::NoSuchBucket);
            assert!(Kept::of(other).still(known.clone()).is_err());
        }
        assert!(Kept::of(None).still(Kept::of(None)).is_ok());
        // One that was not made through S3, and is configured later, is the same.
        assert!(Kept::of(None).still(Kept::of(Some(&open("", 0)))).is_ok());
    }
}

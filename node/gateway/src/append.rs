//! Objects made longer: what comes is written at their end, and nothing that stands there is moved. Amazon has this in
//! directory buckets only; here, in every bucket that never kept versions.
//!
//! What comes is a part first, and so is an object that rides in the journal; an upload's record says whose they are,
//! under a name of its own, so that no client sees it (see `decisions/2026-11-27-append.md`).
//!
//! Invariants:
//! - the object is made longer only if it is the very version that was looked at: of those who append to one end of it,
//!   one does;
//! - its stripes have one owner at any time: what is displaced is taken over whole;
//! - whoever does not come to an end leaves a record, by which what it wrote is freed, or left alone if it may be the
//!   object's.

use std::sync::Arc;

use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::checksum::{Checksum, Kind, checksum_of_parts, md5_of_parts};
use ashlar_cluster_s3::conditional::{Current, etag};
use ashlar_cluster_s3::lifecycle::Subject;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::system::{
    APPENDS, PARTS_MAX, UploadId, UploadRecord, UploadState, part_key,
};
use ashlar_layout::manifest::{Body, Etag, Precondition};
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{Code as Store, GetOptions, Seal};

use crate::acl::asks_acl;
use crate::body::{Promise, Source};
use crate::call::Call;
use crate::complete::{OBJECT_MAX, completing};
use crate::digests::Sent;
use crate::directory::reserved;
use crate::faults::{is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, random, to_the_end};
use crate::inbound::Inbound;
use crate::lifecycle::expiration_header;
use crate::locks::asked_lock;
use crate::objects::set_checksum;
use crate::pieces::Pieces;
use crate::puts::{PUT_MAX, Target, attributes_of, write_if};
use crate::reply::Reply;
use crate::uploads::{Upload, remove};
use crate::versions::Keeping;

/// After so long whoever was appending is taken for gone,
const GONE_MS: u64 = 24 * 60 * 60 * 1000;
/// and after so long what somebody gave up is certainly at rest: a part may have been on its way.
const RESTS_MS: u64 = 10 * 60 * 1000;

/// Where a request wants its body written, if it says that.
pub(crate) fn write_offset(call: &Call) -> Result<Option<u64>, Refusal> {
    match call.header("x-amz-write-offset-bytes").map(str::parse) {
        None => Ok(None),
        Some(Ok(offset)) => Ok(Some(offset)),
        Some(Err(_)) => refused(
            Code::InvalidArgument,
            "The x-amz-write-offset-bytes header is no number of bytes",
        ),
    }
}

fn wrong_offset() -> Refusal {
    Refusal::new(
        Code::InvalidWriteOffset,
        "The write offset value that you specified does not match the current object size.",
    )
}

fn not_of_versions<T>() -> Result<T, Refusal> {
    refused(
        Code::InvalidRequest,
        "Objects of a bucket that keeps versions, or has done so, cannot be appended to",
    )
}

/// An object, and what it is to become.
struct Longer {
    old: ObjectMeta,
    /// What is remembered of it, without its checksum.
    attributes: Attributes,
    /// Its checksum, if that of something longer can be made of it.
    checksum: Option<Checksum>,
}

impl Longer {
    fn of(old: ObjectMeta) -> Result<Longer, Refusal> {
        // Which upload it came of stays: whoever asks again to complete that one is to be told that it is done.
        let mut found = attributes(&old)?;
        let full = |one: &Checksum| one.kind == Kind::FullObject;
        let combines = |one: &Checksum| one.algorithm.takes(Kind::FullObject);
        let checksum = found.checksum().cloned();
        let checksum = checksum.filter(|one| full(one) && combines(one));
        (found.parts, found.modified_ms) = (None, None);
        found.checksums = checksum.iter().cloned().collect();
        // What does not fit is refused before the body comes.
        found.encode()?;
        Ok(Longer {
            old,
            attributes: found,
            checksum,
        })
    }

    /// Whether it rides in the journal, and has to be a part first.
    fn is_inline(&self) -> bool {
        let manifest = &self.old.manifest;
        manifest.body == Body::Inline && manifest.size > 0
    }

    /// What is to be kept of it with this part behind it.
    fn seal(mut self, part: &ObjectMeta) -> Result<(ObjectMeta, Seal, Option<Checksum>), Refusal> {
        let old = &self.old.manifest;
        let mut of_part = attributes(part)?.checksums.into_iter();
        let checksum = self.checksum.and_then(|of_old| {
            let algorithm = of_old.algorithm;
            let of_part = of_part.find(|one| one.algorithm == algorithm)?;
            let both = [
                (of_old.digest, old.size),
                (of_part.digest, part.manifest.size),
            ];
            let whole = checksum_of_parts(algorithm, Kind::FullObject, &both).digest;
            Some(Checksum::full(algorithm, whole))
        });
        self.attributes.checksums = checksum.iter().cloned().collect();
        let etag = Etag {
            md5: md5_of_parts([&old.etag.md5, &part.manifest.etag.md5].into_iter()),
            parts: old.etag.parts.max(1) + 1,
        };
        let attributes = self.attributes.encode()?.into();
        Ok((self.old, Seal { etag, attributes }, checksum))
    }
}

/// An append that was begun, of which nothing was proposed: it is given up if nobody goes on with it.
struct Begun(Option<(Arc<Gateway>, UploadRecord, UploadId)>);

impl Drop for Begun {
    fn drop(&mut self) {
        let Some((gateway, record, id)) = self.0.take() else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(refusal) = gateway.give_up(&record.stands_at(id)).await {
                    gateway.tell_of(&record.bucket, &refusal);
                }
            });
        }
    }
}

impl Gateway {
    /// PutObject, at the end of what stands there.
    pub(crate) async fn append_object(
        self: &Arc<Self>,
        context: &Context,
        offset: u64,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        asked_lock(context, call)?;
        if context.keeping() != Keeping::Off {
            return not_of_versions();
        }
        let condition = write_if(call)?;
        let old = match self.store.head(&call.bucket, &call.key).await {
            Ok(meta) => meta,
            Err(error) if is_absent(&error) => {
                condition.decide(None)?;
                if offset > 0 {
                    return Err(wrong_offset());
                }
                // Nothing is as long as that, so there is nothing to append to: it is made.
                let only = Some(Precondition::Absent);
                return self.put_whole(context, body, only).await;
            }
            Err(error) => return Err(refusal(&error)),
        };
        if old.tag.is_some() {
            return not_of_versions();
        }
        condition.decide(Some(&Current {
            etag: etag(&old.manifest, old.id()),
            version: old.version,
        }))?;
        let bucket = context.access.bucket.as_deref();
        self.check_append(call, bucket, &attributes(&old)?)?;
        let mut given = attributes_of(call)?;
        self.set_acl(&context.access, call, &mut given).await?;
        let other_acl = context.access.has_acls().is_some() && asks_acl(call)?;
        if !given.metadata.is_empty() || !given.tags.is_empty() || other_acl {
            return refused(
                Code::InvalidRequest,
                "An object that is appended to keeps the metadata, the tags and the ACL that it has",
            );
        }
        if old.manifest.size != offset {
            return Err(wrong_offset());
        }
        if old.manifest.etag.parts >= PARTS_MAX {
            let message = format!(
                "You have attempted to add more parts than the maximum of {PARTS_MAX} that are allowed for \
                 this object. You can use the CopyObject operation to copy this object to another and then \
                 add more data to the newly copied object."
            );
            return Err(Refusal::new(Code::TooManyParts, message));
        }
        let id = UploadId::new(context.now_ms, random()?);
        let longer = Longer::of(old)?;
        let (promise, sent) = self.appended(context, &longer)?;
        let owner = context.access.account().unwrap_or_default();
        let record = UploadRecord {
            append: true,
            ..UploadRecord::new(&call.bucket, &call.key, id, owner, context.now_ms)
        };
        let begun = Begun(Some((self.clone(), record.clone(), id)));
        let upload = self.begin(record, id).await?;
        let mut keys = Vec::new();
        if longer.is_inline() {
            keys.push(self.copy_inline(call, id, &longer.old).await?);
        }
        let key = part_key(id, 2, random()?);
        let source = Source::Http(body);
        self.make(Target::part(&key), source, promise, &sent)
            .await?;
        keys.push(key);
        let parts = self.look_at(keys.clone()).await?;
        let (this, context) = (self.clone(), context.clone());
        to_the_end(async move {
            this.lengthen(&context, longer, (keys, parts), (begun, upload))
                .await
        })
        .await
    }

    /// What is promised of what is appended, and what was said of it.
    fn appended(&self, context: &Context, longer: &Longer) -> Result<(Promise, Sent), Refusal> {
        let wanted = longer.checksum.as_ref().map(|one| one.algorithm);
        let sent = Sent::of(&context.call)?.fitting(wanted)?;
        let mut promise = self.promise(context)?;
        let whole = longer.old.manifest.size.saturating_add(promise.len);
        if promise.len > PUT_MAX || whole > OBJECT_MAX {
            return refused(
                Code::EntityTooLarge,
                "Your proposed upload exceeds the maximum allowed size",
            );
        }
        promise.algorithms = sent.algorithms();
        Ok((promise, sent))
    }

    /// Makes a part of an object that rides in the journal; says its key.
    async fn copy_inline(
        &self,
        call: &Call,
        id: UploadId,
        old: &ObjectMeta,
    ) -> Result<String, Refusal> {
        let (bucket, name) = (&call.bucket, &call.key);
        let share = self.memory.share(call.peer(), old.manifest.size).await?;
        let stream = self.store.get(bucket, name, GetOptions::default()).await;
        let stream = match stream {
            Ok(stream) if stream.meta().version == old.version => stream,
            // The journal would find the same in the end.
            Ok(_) => return Err(wrong_offset()),
            Err(error) if is_absent(&error) => return Err(wrong_offset()),
            Err(error) => return Err(refusal(&error)),
        };
        let (key, sent) = (part_key(id, 1, random()?), Sent::default());
        let promise = self.own_promise(call.peer(), old.manifest.size, &sent, share);
        let source = Source::Object(Pieces::new(stream));
        self.make(Target::part(&key), source, promise, &sent)
            .await?;
        Ok(key)
    }

    /// Makes the object longer, now that its parts are durable.
    async fn lengthen(
        &self,
        context: &Context,
        longer: Longer,
        (keys, parts): (Vec<String>, Vec<ObjectMeta>),
        (mut begun, mut upload): (Begun, Upload),
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        // By what the bucket wants by now: the bytes may have come for an hour.
        let kept = self.still_kept(&call.bucket, context.known()).await?;
        if kept.keeping != Keeping::Off {
            return not_of_versions();
        }
        let Some(last) = parts.last().filter(|_| parts.len() == keys.len()) else {
            return Err(crate::faults::internal("a part that is gone"));
        };
        let size = longer.old.manifest.size + last.manifest.size;
        let offset = longer.old.manifest.size;
        let (old, seal, checksum) = longer.seal(last)?;
        if !self.turn(&mut upload, completing()).await? {
            // Whoever took this one for gone may have been here before its parts.
            begun.0 = None;
            for key in &keys {
                remove(&self.store, key, Precondition::None, false).await?;
            }
            return refused(Code::RequestTimeout, "The request took too long to append");
        }
        // From here on it is given up by nobody who does not know how it went.
        begun.0 = None;
        let tags = attributes(&old)?.tags;
        let etag = seal.etag;
        let manifests = parts.into_iter().map(|part| part.manifest).collect();
        let made = self
            .store
            .append(&call.bucket, &call.key, old, manifests, seal)
            .await;
        match made {
            Ok(_) => self.clean(upload, keys).await?,
            Err(error) if error.is_uncertain() => return Err(refusal(&error)),
            Err(error) => {
                // It is certainly not longer by them, so the parts are the upload's again, and freed.
                if self.turn(&mut upload, UploadState::Aborting).await? {
                    self.clear(&upload, &|_| false).await?;
                }
                return Err(match error.code() {
                    Store::PreconditionFailed => self.overtaken(call, offset).await,
                    // Its lists may be gone with what it was.
                    Store::Unreadable => match self.overtaken(call, offset).await {
                        said if said.code == Code::InvalidWriteOffset => said,
                        _ => refusal(&error),
                    },
                    _ => refusal(&error),
                });
            }
        }
        let mut reply = Reply::ok()
            .with("etag", &format!("\"{etag}\""))
            .with("x-amz-object-size", &size.to_string());
        let subject = Subject {
            key: &call.key,
            size,
            tags: &tags,
            modified_ms: context.now_ms,
        };
        if let Some(ends) = expiration_header(context.access.bucket.as_ref(), &subject) {
            reply.set("x-amz-expiration", &ends);
        }
        if let Some(checksum) = &checksum {
            set_checksum(&mut reply, checksum);
        }
        Ok(reply)
    }

    /// What is said to who found the end of an object somewhere else when the bytes had come.
    async fn overtaken(&self, call: &Call, offset: u64) -> Refusal {
        match self.store.head(&call.bucket, &call.key).await {
            Ok(meta) if meta.manifest.size == offset => Refusal::new(
                Code::ConditionalRequestConflict,
                "The object was replaced by another one of the same size. Please try again.",
            ),
            Err(error) if !is_absent(&error) => refusal(&error),
            _ => wrong_offset(),
        }
    }

    /// Sees to it that what was begun is not gone on with: only for who knows that nothing of it was proposed. What it
    /// wrote is freed later, by all that look at the lifecycles: some of it may be on its way.
    async fn give_up(&self, key: &str) -> Result<(), Refusal> {
        while let Some(mut upload) = self.recorded(key).await? {
            if !upload.record.state.has_parts()
                || self.turn(&mut upload, UploadState::Aborting).await?
            {
                break;
            }
        }
        Ok(())
    }

    /// Ends what was begun, if it has been at rest for so long that whoever began it is gone; says whether it did.
    async fn end_append(&self, key: &str, rests_ms: u64) -> Result<bool, Refusal> {
        if rests_ms < RESTS_MS {
            return Ok(false);
        }
        let Some(upload) = self.recorded(key).await? else {
            return Ok(false);
        };
        let ended = match upload.record.state {
            UploadState::Aborting | UploadState::Made => self.abort(upload).await,
            _ if rests_ms < GONE_MS => return Ok(false),
            UploadState::Open => self.abort(upload).await,
            // It may be the object's, or have been: nothing of it is freed.
            UploadState::Completing { .. } => self.retire(upload, &|_| true).await,
        };
        match ended {
            Ok(()) => Ok(true),
            // Somebody else is at it.
            Err(refusal) if refusal.code == Code::OperationAborted => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// Ends what was begun by gateways that are gone, and what was given up; says how many that was.
    pub(crate) async fn end_appends(&self, now_ms: u64) -> Result<u64, Refusal> {
        let (mut after, mut ended) = (String::new(), 0);
        loop {
            let page = reserved(&self.store, APPENDS, after).await?;
            for entry in page.objects {
                let rests_ms = now_ms.saturating_sub(entry.modified_ms);
                match self.end_append(&entry.key, rests_ms).await {
                    Ok(true) => ended += 1,
                    Ok(false) => {}
                    // One that cannot be ended keeps no other from its end.
                    Err(refusal) => self.tell_of(&entry.key, &refusal),
                }
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(ended),
            }
        }
    }
}

//! Making objects.
//!
//! Invariants:
//! - conditions are judged before the body is asked for, and again by the journal when the object is made;
//! - what is acknowledged has the digests that were sent of it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::checksum::{Algorithm, Checksum};
use ashlar_cluster_s3::conditional::{Current, WriteIf, etag};
use ashlar_cluster_s3::lifecycle::Subject;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::tags;
use ashlar_layout::ids::Seq;
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{Etag, Precondition};
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::{ClientError, Code as Store, PutOptions, Seal, Sealed};

use crate::access::Access;
use crate::append::write_offset;
use crate::body::{BodyReader, Promise, Source, came};
use crate::call::Call;
use crate::digests::Sent;
use crate::encryption::{Cipher, has_default, set_kind};
use crate::faults::{is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, now_ms};
use crate::inbound::Inbound;
use crate::lifecycle::expiration_header;
use crate::locks::{Kept, asked_lock};
use crate::memory::Share;
use crate::objects::set_checksum;
use crate::places::Peer;
use crate::reply::Reply;
use crate::versions::Keeping;

/// Most bytes of one body.
pub(crate) const PUT_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// What was put.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) version: Seq,
    /// What the version is called, if it has a name of its own.
    pub(crate) id: Option<String>,
    pub(crate) etag: String,
    pub(crate) checksum: Option<Checksum>,
}

/// Where something is to be put, and how.
pub(crate) struct Target<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) key: &'a str,
    pub(crate) condition: &'a WriteIf,
    pub(crate) precondition: Precondition,
    pub(crate) attributes: Attributes,
    /// The lock that is asked for.
    pub(crate) lock: Lock,
    /// What its bucket wanted, and when; nothing of the reserved one, into which nobody is let.
    pub(crate) known: Option<(Kept, Instant)>,
    /// With what it is encrypted.
    pub(crate) cipher: Option<Cipher>,
}

impl<'a> Target<'a> {
    /// A part, under a key that nothing else has.
    pub(crate) fn part(key: &'a str) -> Target<'a> {
        Target {
            bucket: SYSTEM_BUCKET,
            key,
            condition: &WriteIf::Always,
            precondition: Precondition::None,
            attributes: Attributes::default(),
            lock: Lock::NONE,
            known: None,
            cipher: None,
        }
    }
}

/// Refuses what cannot be kept with an object here.
pub(crate) fn check_kept(call: &Call) -> Result<(), Refusal> {
    match call.header("x-amz-storage-class") {
        None | Some("" | "STANDARD") => Ok(()),
        Some(_) => refused(
            Code::InvalidStorageClass,
            "The storage class you specified is not valid",
        ),
    }
}

/// What a request wants remembered of the object.
pub(crate) fn attributes_of(call: &Call) -> Result<Attributes, Refusal> {
    check_kept(call)?;
    let header = |name: &str| {
        call.header(name)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let tagging = call.header("x-amz-tagging");
    let mut attributes = Attributes {
        content_type: header("content-type"),
        content_encoding: header("content-encoding").and_then(|text| without_chunks(&text)),
        content_language: header("content-language"),
        content_disposition: header("content-disposition"),
        cache_control: header("cache-control"),
        expires: header("expires"),
        metadata: call.headers_from("x-amz-meta-"),
        tags: tagging.map_or(Ok(Vec::new()), tags::parse_header)?,
        ..Attributes::default()
    };
    attributes.metadata.sort();
    // What does not fit is refused before the body comes.
    attributes.encode()?;
    Ok(attributes)
}

/// A content encoding without that of the body on its way; as it came, if that is not in it.
fn without_chunks(encoding: &str) -> Option<String> {
    if !encoding.to_ascii_lowercase().contains("aws-chunked") {
        return Some(encoding.to_owned());
    }
    let others: Vec<&str> = encoding
        .split(',')
        .map(str::trim)
        .filter(|one| !one.eq_ignore_ascii_case("aws-chunked") && !one.is_empty())
        .collect();
    (!others.is_empty()).then(|| others.join(","))
}

/// The condition of a write.
pub(crate) fn write_if(call: &Call) -> Result<WriteIf, Refusal> {
    WriteIf::parse(call.header("if-match"), call.header("if-none-match"))
}

impl Gateway {
    /// What stands where something is to be written.
    pub(crate) async fn current(
        &self,
        bucket: &str,
        key: &str,
    ) -> Result<Option<Current>, Refusal> {
        match self.store.head(bucket, key).await {
            Ok(meta) => Ok(Some(Current {
                etag: etag(&meta.manifest, meta.id()),
                version: meta.version,
            })),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(refusal(&error)),
        }
    }

    /// What a write is to be proposed with, if its condition holds now.
    pub(crate) async fn precondition(
        &self,
        bucket: &str,
        key: &str,
        condition: &WriteIf,
    ) -> Result<Precondition, Refusal> {
        if *condition == WriteIf::Always {
            return Ok(Precondition::None);
        }
        condition.decide(self.current(bucket, key).await?.as_ref())
    }

    /// What a write is answered with that the journal refused.
    pub(crate) async fn lost(&self, bucket: &str, key: &str, condition: &WriteIf) -> Refusal {
        match self.current(bucket, key).await {
            Err(refusal) => refusal,
            Ok(current) => match condition.decide_again(current.as_ref()) {
                Err(refusal) => refusal,
                // Its condition holds, and yet it was not done: the body is gone, the client has it still.
                Ok(_) => Refusal::new(
                    Code::ConditionalRequestConflict,
                    "The conditional request cannot succeed due to a conflicting operation against this \
                     resource.",
                ),
            },
        }
    }

    /// PutObject.
    pub(crate) async fn put_object(
        self: &Arc<Self>,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        match write_offset(&context.call)? {
            Some(offset) => self.append_object(context, offset, body).await,
            None => self.put_whole(context, body, None).await,
        }
    }

    /// PutObject of all there is to be: if the request's condition holds, or this one.
    pub(crate) async fn put_whole(
        &self,
        context: &Context,
        body: Inbound,
        precondition: Option<Precondition>,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        let mut attributes = attributes_of(call)?;
        self.set_acl(&context.access, call, &mut attributes).await?;
        let by_default = has_default(context.access.bucket.as_deref());
        let cipher = self.encrypt(call, by_default, &mut attributes)?;
        let lock = asked_lock(context, call)?;
        let sent = Sent::of(call)?.or_made(Algorithm::Crc64Nvme);
        let condition = write_if(call)?;
        let mut promise = self.promise(context)?;
        if promise.len > PUT_MAX {
            return refused(
                Code::EntityTooLarge,
                "Your proposed upload exceeds the maximum allowed size",
            );
        }
        let precondition = match precondition {
            Some(only) => only,
            None => {
                self.precondition(&call.bucket, &call.key, &condition)
                    .await?
            }
        };
        promise.algorithms = sent.algorithms();
        let subject = Subject {
            key: &call.key,
            size: promise.len,
            tags: &attributes.tags,
            modified_ms: context.now_ms,
        };
        let ends = expiration_header(context.access.bucket.as_ref(), &subject);
        let kind = cipher.as_ref().map(Cipher::kind);
        let target = Target {
            bucket: &call.bucket,
            key: &call.key,
            condition: &condition,
            precondition,
            attributes,
            lock,
            known: Some(context.known()),
            cipher,
        };
        let made = self
            .make(target, Source::Http(body), promise, &sent)
            .await?;
        let mut reply = Reply::ok().with("etag", &format!("\"{}\"", made.etag));
        if let Some(ends) = ends {
            reply.set("x-amz-expiration", &ends);
        }
        set_kind(&mut reply, call, kind);
        if let Some(id) = &made.id {
            reply.set("x-amz-version-id", id);
        }
        if let Some(checksum) = &made.checksum {
            set_checksum(&mut reply, checksum);
        }
        Ok(reply)
    }

    /// Makes an object of a body.
    pub(crate) async fn make(
        &self,
        target: Target<'_>,
        source: Source,
        mut promise: Promise,
        sent: &Sent,
    ) -> Result<Made, Refusal> {
        let Target {
            bucket,
            key,
            condition,
            precondition,
            attributes,
            lock,
            known,
            cipher,
        } = target;
        let (len, least) = (promise.len, promise.least);
        let _share = match promise.share.take() {
            Some(share) => share,
            None => self.memory.share(promise.peer, len).await?,
        };
        let (reader, shared) = BodyReader::new(source, promise);
        let options = PutOptions {
            precondition,
            size_hint: Some(len),
            size_exact: least.is_none().then_some(len),
            // Of what stands in the reserved bucket parts alone come this way: they are to be taken over.
            striped: bucket == SYSTEM_BUCKET,
            cipher: cipher.as_ref().map(Cipher::key),
            ..PutOptions::default()
        };
        let mut made: Option<(String, Option<Checksum>, Keeping)> = None;
        // By what the bucket's configuration says when all bytes are there: they may have come for an hour.
        let seal = async |_: Sealed| {
            let kept = match known {
                Some(known) => self.still_kept(bucket, known).await,
                None => Ok(Kept::of(None)),
            };
            let mut came = came(&shared);
            let sealed = seal(&came, sent, attributes);
            let sealed = sealed.and_then(|sealed| {
                let kept = kept?;
                Ok((sealed, kept.keeping, kept.making(lock, now_ms())?))
            });
            match sealed {
                Ok(((mut seal, checksum), keeping, making)) => {
                    if let Some(cipher) = &cipher {
                        seal.etag.md5 = cipher.etag(seal.etag.md5);
                    }
                    made = Some((seal.etag.to_string(), checksum, keeping));
                    Ok(Sealed { seal, making })
                }
                Err(refusal) => {
                    let error = io::Error::other(refusal.to_string());
                    came.refusal = Some(refusal);
                    Err(error)
                }
            }
        };
        let put = self
            .store
            .put_sealed(bucket, key, reader, options, seal)
            .await;
        match (put, made) {
            (Ok(outcome), Some((etag, checksum, keeping))) => Ok(Made {
                version: outcome.version,
                id: keeping.made(outcome.version),
                etag,
                checksum,
            }),
            (Err(error), _) if error.code() == Store::PreconditionFailed => {
                Err(self.lost(bucket, key, condition).await)
            }
            (Err(ClientError::SourceLength { .. }), _) => refused(
                Code::IncompleteBody,
                "You did not provide the number of bytes specified by the Content-Length HTTP header",
            ),
            (Err(error), _) => {
                let said = came(&shared).refusal.take();
                Err(said.unwrap_or_else(|| refusal(&error)))
            }
            (Ok(_), None) => Err(crate::faults::internal("an object that was not sealed")),
        }
    }

    /// What is promised of a body that comes from the store.
    pub(crate) fn own_promise(&self, peer: Peer, len: u64, sent: &Sent, share: Share) -> Promise {
        Promise {
            len,
            least: None,
            payload: ashlar_cluster_s3::signature::Payload::Unsigned,
            signer: None,
            algorithms: sent.algorithms(),
            pace: self.pace(len),
            peer,
            share: Some(share),
        }
    }

    /// Says which tags an object has; none, if there is no such object.
    pub(crate) async fn say_tags_of(
        &self,
        access: &mut Access,
        bucket: &str,
        key: &str,
        version: Option<Seq>,
    ) -> Result<(), Refusal> {
        let tags = match self.head(bucket, key, version).await {
            Ok(meta) => attributes(&meta)?.tags,
            Err(error) if is_absent(&error) => Vec::new(),
            Err(error) => return Err(refusal(&error)),
        };
        access.say_existing_tags(&tags);
        Ok(())
    }
}

/// What is to be remembered of a body that came, if it is what was said of it.
pub(crate) fn seal(
    came: &crate::body::Came,
    sent: &Sent,
    mut attributes: Attributes,
) -> Result<(Seal, Option<Checksum>), Refusal> {
    let Some(digests) = &came.digests else {
        return Err(crate::faults::internal("a body without an end"));
    };
    let checksum = sent.check(digests, &came.trailer)?;
    attributes.checksums = checksum.iter().cloned().collect();
    let etag = Etag {
        md5: digests.md5,
        parts: 0,
    };
    let seal = Seal {
        etag,
        attributes: attributes.encode()?.into(),
    };
    Ok((seal, checksum))
}

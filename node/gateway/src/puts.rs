//! Making objects: of a body, and of other objects.
//!
//! Invariants:
//! - conditions are judged before the body is asked for, and again by the journal when the object is made;
//! - what is acknowledged has the digests that were sent of it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::calendar::iso_date;
use ashlar_cluster_s3::checksum::{Algorithm, Checksum};
use ashlar_cluster_s3::conditional::{Current, ReadIf, WriteIf, etag};
use ashlar_cluster_s3::encryption::{Kind, SealedKey};
use ashlar_cluster_s3::lifecycle::Subject;
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::tags::{self, Tags};
use ashlar_cluster_s3::text::percent_decode;
use ashlar_cluster_s3::version_id;
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::ids::Seq;
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{Etag, Precondition};
use ashlar_layout::message::ObjectMeta;
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::{ClientError, Code as Store, GetOptions, PutOptions, Seal, Sealed};

use crate::access::Access;
use crate::admit::of_version;
use crate::append::write_offset;
use crate::body::{BodyReader, Promise, Source, came};
use crate::call::{Call, arn, check_bucket_name};
use crate::digests::Sent;
use crate::encryption::{Cipher, has_default, says_how, set_kind};
use crate::faults::{is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, modified_ms, now_ms};
use crate::inbound::Inbound;
use crate::lifecycle::expiration_header;
use crate::locks::{Kept, asked_lock};
use crate::objects::{set_checksum, write_checksum};
use crate::pieces::Pieces;
use crate::reply::Reply;
use crate::versions::{Keeping, missing};

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
        promise: Promise,
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
        let _share = self.memory.share(len).await?;
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

    /// CopyObject.
    pub(crate) async fn copy_object(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        let from = CopySource::of(call)?;
        let replaces = directive(call, "x-amz-metadata-directive")?;
        let replaces_tags = directive(call, "x-amz-tagging-directive")?;
        let mut given = attributes_of(call)?;
        self.set_acl(&context.access, call, &mut given).await?;
        let lock = asked_lock(context, call)?;
        let condition = write_if(call)?;
        // Before the source is open: who reads and waits to read more may wait for others like it.
        let precondition = self
            .precondition(&call.bucket, &call.key, &condition)
            .await?;
        let (stream, meta, found) = self
            .open_source(context, &from, None, !replaces_tags)
            .await?;
        if meta.manifest.size > PUT_MAX {
            return refused(
                Code::InvalidRequest,
                "The specified copy source is larger than the maximum allowable size for a copy source: \
                 5368709120",
            );
        }
        let same = from.bucket == call.bucket && from.key == call.key && from.version.is_none();
        let algorithm = call
            .header("x-amz-checksum-algorithm")
            .map(Algorithm::parse)
            .transpose()?;
        let changes = replaces || replaces_tags || algorithm.is_some() || says_how(call);
        if same && !changes {
            return refused(
                Code::InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without \
                 changing the object's metadata, storage class, website redirect location or encryption \
                 attributes.",
            );
        }
        let is_ours = found.encryption.as_ref().map(SealedKey::kind) == Some(Kind::Store);
        let mut attributes = if replaces {
            given.clone()
        } else {
            found.clone()
        };
        attributes.tags = if replaces_tags {
            given.tags
        } else {
            // Which tags that would be, nobody knew when the request was judged.
            check_tags(context.access.clone(), call, &found.tags)?;
            found.tags
        };
        (attributes.parts, attributes.upload) = (None, None);
        (attributes.renamed, attributes.acl) = (None, given.acl);
        (attributes.modified_ms, attributes.checksums) = (None, Vec::new());
        let kept = found.checksums.first().map(|checksum| checksum.algorithm);
        let algorithm = algorithm.or(kept).unwrap_or(Algorithm::Crc64Nvme);
        let sent = Sent::default().or_made(algorithm);
        // However the source is encrypted: what is copied is encrypted anew. Who copies an object onto itself, to give
        // it other metadata, does not mean to have it in the clear.
        let by_default = has_default(context.access.bucket.as_deref()) || same && is_ours;
        let cipher = self.encrypt(call, by_default, &mut attributes)?;
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
        let promise = self.own_promise(meta.manifest.size, &sent);
        let source = Source::Object(Pieces::new(stream));
        let made = self.make(target, source, promise, &sent).await?;
        let now = self.store.head(&call.bucket, &call.key).await;
        let modified = match now {
            Ok(meta) if meta.version == made.version => meta.modified_ms,
            _ => context.now_ms,
        };
        let mut reply = Reply::xml(copy_result("CopyObjectResult", &made, modified));
        if let Some(id) = &made.id {
            reply.set("x-amz-version-id", id);
        }
        set_kind(&mut reply, call, kind);
        set_source_version(&mut reply, &meta);
        Ok(reply)
    }

    /// What is promised of a body that comes from the store.
    pub(crate) fn own_promise(&self, len: u64, sent: &Sent) -> Promise {
        Promise {
            len,
            least: None,
            payload: ashlar_cluster_s3::signature::Payload::Unsigned,
            signer: None,
            algorithms: sent.algorithms(),
            pace: self.pace(),
        }
    }

    /// Opens what is to be copied, if the caller may read it, its tags too if they are copied, and its conditions hold.
    pub(crate) async fn open_source(
        &self,
        context: &Context,
        from: &CopySource,
        range: Option<ashlar_node_client::ByteRange>,
        with_tags: bool,
    ) -> Result<(ashlar_node_client::GetStream, ObjectMeta, Attributes), Refusal> {
        let call = &context.call;
        let mut access = self.access_to(context, &from.bucket).await?;
        access.check_expected_owner(call.header("x-amz-source-expected-bucket-owner"))?;
        let source = arn(&from.bucket, &from.key);
        let version = from.version.is_some().then_some(from.version_id.as_str());
        access.say_version(version);
        let by_tags = access.looks_at_existing_tags();
        if by_tags {
            self.say_tags_of(&mut access, &from.bucket, &from.key, from.version)
                .await?;
        }
        let action = of_version(Operation::GetObject, from.version.is_some());
        // Whether it may be read may be its owner's to say.
        if !access.waits_for_object(action, &source) {
            access.check(action, &source)?;
        }
        let names = (from.bucket.as_str(), from.key.as_str());
        let options = GetOptions {
            range,
            version: from.version,
        };
        let stream = self.store.get(names.0, names.1, options).await;
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) if is_absent(&error) => {
                let gone = missing(&access, names, from.version, &error);
                if gone.code == Code::MethodNotAllowed {
                    return refused(
                        Code::InvalidRequest,
                        "The source of a copy request may not specifically refer to a delete marker by \
                         version id.",
                    );
                }
                return Err(gone);
            }
            Err(error) if error.code() == Store::RangeNotSatisfiable => {
                // How long it is, is told to who may read it.
                let meta = self.find_version(&access, names, from.version).await?;
                let found = attributes(&meta)?;
                if by_tags {
                    access.say_existing_tags(&found.tags);
                }
                access.check_of(action, &source, &found)?;
                self.check_source_key(call, &found)?;
                return refused(
                    Code::InvalidArgument,
                    "Range specified is not valid for source object",
                );
            }
            Err(error) => return Err(refusal(&error)),
        };
        let meta = stream.meta().clone();
        let found = attributes(&meta)?;
        if by_tags {
            // It may be another object by now.
            access.say_existing_tags(&found.tags);
        }
        access.check_of(action, &source, &found)?;
        if with_tags && !found.tags.is_empty() {
            let action = of_version(Operation::GetObjectTagging, from.version.is_some());
            access.check_of(action, &source, &found)?;
        }
        self.decrypt_source(call, &found, &mut stream)?;
        from.conditions
            .check_copy(&etag(&meta.manifest, meta.id()), modified_ms(&meta, &found))?;
        Ok((stream, meta, found))
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

    /// What the caller is to a bucket, which may be another one than the call's.
    async fn access_to(&self, context: &Context, bucket: &str) -> Result<Access, Refusal> {
        if bucket == context.call.bucket {
            let mut access = context.access.clone();
            access.waiting.clear();
            return Ok(access);
        }
        let open = self.directory.bucket(bucket).await?;
        if open.is_none() {
            self.check_bucket_there(bucket).await?;
        }
        let mut access = context.access.clone();
        (access.bucket, access.waiting) = (open, Vec::new());
        Ok(access)
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

/// Says which version was copied, if it was one.
pub(crate) fn set_source_version(reply: &mut Reply, meta: &ObjectMeta) {
    if meta.tag.is_some() {
        let id = version_id::write(meta.tag);
        reply.set("x-amz-copy-source-version-id", &id);
    }
}

/// What came of a copy, as a document.
pub(crate) fn copy_result(name: &str, made: &Made, modified_ms: u64) -> String {
    Xml::document(name, |xml| {
        xml.text("LastModified", &iso_date(modified_ms));
        xml.text("ETag", &format!("\"{}\"", made.etag));
        if let Some(checksum) = &made.checksum {
            write_checksum(xml, checksum);
        }
    })
}

/// Refuses to make an object with tags that the caller may not give it.
fn check_tags(mut access: Access, call: &Call, tags: &Tags) -> Result<(), Refusal> {
    access.say_requested_tags(tags);
    access.check(Operation::CopyObject.action(), &call.arn())?;
    match tags.is_empty() {
        true => Ok(()),
        false => access.check("s3:PutObjectTagging", &call.arn()),
    }
}

/// Whether what a request makes is to have the tags that its header says.
pub(crate) fn says_tags(operation: Operation, call: &Call) -> Result<bool, Refusal> {
    match operation {
        Operation::CopyObject => directive(call, "x-amz-tagging-directive"),
        _ => Ok(true),
    }
}

/// Whether a copy is to have what the request says, and not what the source has.
fn directive(call: &Call, name: &'static str) -> Result<bool, Refusal> {
    match call.header(name) {
        None | Some("" | "COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(_) => refused(Code::InvalidArgument, "Unknown metadata directive."),
    }
}

/// What is to be copied.
#[derive(Clone, Debug)]
pub(crate) struct CopySource {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) version: Option<Seq>,
    /// As it was sent; empty if none was.
    version_id: String,
    conditions: ReadIf,
}

impl CopySource {
    /// From a request's headers.
    pub(crate) fn of(call: &Call) -> Result<CopySource, Refusal> {
        let bad = || {
            refused(
                Code::InvalidArgument,
                "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            )
        };
        let source = call.header("x-amz-copy-source").unwrap_or_default();
        if source.starts_with("arn:") {
            return refused(
                Code::NotImplemented,
                "Copies from access points are not implemented",
            );
        }
        let (path, query) = source.split_once('?').unwrap_or((source, ""));
        let version_id = query.strip_prefix("versionId=");
        let version = match version_id {
            None if query.is_empty() => None,
            Some(text) => Some(version_id::parse(text)?),
            None => return bad(),
        };
        // As in a form: a plus that is meant is in percents.
        let Some(path) = percent_decode(&path.replace('+', " ")) else {
            return bad();
        };
        let path = path.strip_prefix('/').unwrap_or(&path);
        let Some((bucket, key)) = path.split_once('/') else {
            return bad();
        };
        if key.is_empty() {
            return bad();
        }
        check_bucket_name(bucket)?;
        let condition = |name: &str| call.header(&format!("x-amz-copy-source-if-{name}"));
        Ok(CopySource {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            version,
            version_id: version_id.unwrap_or_default().to_owned(),
            conditions: ReadIf::parse(
                condition("match"),
                condition("none-match"),
                condition("modified-since"),
                condition("unmodified-since"),
            ),
        })
    }
}

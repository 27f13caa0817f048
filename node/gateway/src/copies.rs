//! Copying: objects, and parts, of other objects.
//!
//! Invariants:
//! - what is copied is judged as it is found: who may read it, and its tags, if these are copied;
//! - who waits for memory has nothing open meanwhile.

use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::calendar::iso_date;
use ashlar_cluster_s3::checksum::Algorithm;
use ashlar_cluster_s3::conditional::{ReadIf, etag};
use ashlar_cluster_s3::encryption::{Kind, SealedKey};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::tags::Tags;
use ashlar_cluster_s3::text::percent_decode;
use ashlar_cluster_s3::version_id;
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::ids::Seq;
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{ByteRange, Code as Store, GetOptions, GetStream};

use crate::access::Access;
use crate::admit::of_version;
use crate::body::Source;
use crate::call::{Call, arn, check_bucket_name};
use crate::digests::Sent;
use crate::encryption::{Cipher, has_default, says_how, set_kind};
use crate::faults::{is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, modified_ms};
use crate::locks::asked_lock;
use crate::memory::{Share, Waited};
use crate::objects::{TRIES, too_fast, write_checksum};
use crate::pieces::Pieces;
use crate::puts::{Made, PUT_MAX, Target, attributes_of, write_if};
use crate::reply::Reply;
use crate::versions::missing;

/// What is copied, open, and what is known of it.
pub(crate) type Opened = (GetStream, ObjectMeta, Attributes);

impl Gateway {
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
        let ((stream, meta, found), share) = self
            .open_to_copy(context, &from, None, !replaces_tags)
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
        let promise = self.own_promise(call.peer(), meta.manifest.size, &sent, share);
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

    /// Opens what is to be copied, with the memory that copying it takes. Who waits for that keeps nobody else from
    /// reading.
    pub(crate) async fn open_to_copy(
        &self,
        context: &Context,
        from: &CopySource,
        range: Option<ByteRange>,
        with_tags: bool,
    ) -> Result<(Opened, Share), Refusal> {
        let mut waited = Waited::default();
        for _ in 0..TRIES {
            let opened = self.open_source(context, from, range, with_tags).await?;
            let of = opened.0.range();
            let len = of.end - of.start;
            if let Some(share) = self.memory.share_of(context.call.peer(), len, &mut waited) {
                return Ok((opened, share));
            }
            drop(opened);
            self.memory
                .wait(context.call.peer(), len, &mut waited)
                .await?;
        }
        too_fast()
    }

    /// Opens what is to be copied, if the caller may read it, its tags too if they are copied, and its conditions hold.
    async fn open_source(
        &self,
        context: &Context,
        from: &CopySource,
        range: Option<ByteRange>,
        with_tags: bool,
    ) -> Result<Opened, Refusal> {
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

//! Tags of objects.
//!
//! Invariant: tags are changed of the version that was found; the object's bytes stay where they are, and
//! so do its ETag and the time when it was made.

use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::conditional::etag_of;
use ashlar_cluster_s3::documents::{parse_tagging, write_tagging};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::Refusal;
use ashlar_cluster_s3::tags::{OBJECT_TAGS_MAX, Tags};
use ashlar_cluster_s3::text::from_hex;
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Etag, NULL_VERSION, VersionTag};
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{Code as Store, Seal};

use crate::access::denied;
use crate::admit::of_version;
use crate::faults::{busy, is_absent, refusal};
use crate::gateway::{Context, Gateway, attributes, modified_ms};
use crate::inbound::Inbound;
use crate::reply::Reply;
use crate::versions::{asked_version, set_version};

/// So often a change is tried again that others got in the way of.
const TRIES: usize = 8;

/// The ETag that an object keeps although its version changes: if its writer made none, the one that it
/// has had so far.
pub(crate) fn kept_etag(meta: &ObjectMeta) -> Etag {
    let manifest = &meta.manifest;
    if !manifest.etag.is_none() {
        return manifest.etag;
    }
    let text = etag_of(manifest.size, manifest.crc, meta.id());
    let md5 = from_hex(&text).and_then(|bytes| bytes.try_into().ok());
    Etag {
        md5: md5.unwrap_or_default(),
        parts: 0,
    }
}

impl Gateway {
    /// GetObjectTagging, PutObjectTagging, DeleteObjectTagging.
    pub(crate) async fn object_tagging(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        match operation {
            Operation::GetObjectTagging => {
                let meta = self.find(context).await?;
                let mut reply = Reply::xml(write_tagging(&attributes(&meta)?.tags));
                set_version(&mut reply, context.keeping(), &meta);
                Ok(reply)
            }
            Operation::PutObjectTagging => {
                let document = self.document(context, body).await?;
                let tags = parse_tagging(&document, OBJECT_TAGS_MAX)?;
                // Judged here, and by what is judged when the object is found: before, nobody knew which tags.
                let mut context = context.clone();
                context.access.say_requested_tags(&tags);
                let action = of_version(operation, call.param("versionId").is_some());
                if !context.access.may_wait(action, &call.arn()) {
                    return denied();
                }
                self.set_tags(&context, &tags, Reply::ok()).await
            }
            _ => {
                self.set_tags(context, &Tags::new(), Reply::no_content())
                    .await
            }
        }
    }

    /// The version that a request is about, and whether it is the current one: that one is written in two places. What
    /// is found under a name is never taken for what is current by another name.
    pub(crate) async fn to_be_changed(
        &self,
        context: &Context,
        asked: Option<Seq>,
    ) -> Result<(ObjectMeta, bool), Refusal> {
        let Some(asked) = asked else {
            return Ok((self.find(context).await?, true));
        };
        let call = &context.call;
        match self.store.head(&call.bucket, &call.key).await {
            Ok(meta) if meta.tag.map_or(NULL_VERSION, VersionTag::slot) == asked => {
                let names = (call.bucket.as_str(), call.key.as_str());
                context.access.check_found(names, &meta)?;
                return Ok((meta, true));
            }
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(refusal(&error)),
        }
        let meta = self.find(context).await?;
        // One without a tag is current, and came just now.
        let current = meta.tag.is_none();
        Ok((meta, current))
    }

    /// Sets tags of the version that a request is about, and gives the reply back with which one that was.
    async fn set_tags(
        &self,
        context: &Context,
        tags: &Tags,
        reply: Reply,
    ) -> Result<Reply, Refusal> {
        let set = |attributes: &mut Attributes| {
            attributes.tags.clone_from(tags);
            Ok(())
        };
        self.rewrite(context, set, reply).await
    }

    /// Changes what is remembered of the version that a request is about, and gives the reply back with which one that
    /// was.
    pub(crate) async fn rewrite(
        &self,
        context: &Context,
        set: impl Fn(&mut Attributes) -> Result<(), Refusal>,
        mut reply: Reply,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        let asked = asked_version(call)?;
        // The document may have taken a while to come.
        self.still_kept(&call.bucket, context.known()).await?;
        for _ in 0..TRIES {
            let (meta, current) = self.to_be_changed(context, asked).await?;
            let mut attributes = attributes(&meta)?;
            set(&mut attributes)?;
            attributes.modified_ms = Some(modified_ms(&meta, &attributes));
            let seal = Seal {
                etag: kept_etag(&meta),
                attributes: attributes.encode()?.into(),
            };
            set_version(&mut reply, context.keeping(), &meta);
            let (bucket, key) = (&call.bucket, &call.key);
            let sealed = match current {
                true => self.store.reseal(bucket, key, meta, seal).await,
                false => self.store.reseal_version(bucket, key, meta, seal).await,
            };
            match sealed {
                Ok(_) => return Ok(reply),
                // It is another one by now, or is current, or is so no more.
                Err(error) if error.code() == Store::PreconditionFailed || is_absent(&error) => {}
                Err(error) => return Err(refusal(&error)),
            }
        }
        busy()
    }
}

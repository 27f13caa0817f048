//! Tags of objects.
//!
//! Invariant: tags are changed of the version that was found; the object's bytes stay where they are, and
//! so do its ETag and the time when it was made.

use ashlar_cluster_s3::conditional::etag_of;
use ashlar_cluster_s3::documents::{parse_tagging, write_tagging};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::tags::{OBJECT_TAGS_MAX, Tags};
use ashlar_cluster_s3::text::from_hex;
use ashlar_layout::manifest::Etag;
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{Code as Store, Seal};

use crate::faults::{refusal, refused};
use crate::gateway::{Context, Gateway, attributes, modified_ms};
use crate::inbound::Inbound;
use crate::objects::check_version;
use crate::reply::Reply;

/// So often a change is tried again that others got in the way of.
const TRIES: usize = 8;

/// The ETag that an object keeps although its version changes: if its writer made none, the one that it
/// has had so far.
fn kept_etag(meta: &ObjectMeta) -> Etag {
    let manifest = &meta.manifest;
    if !manifest.etag.is_none() {
        return manifest.etag;
    }
    let text = etag_of(manifest.size, manifest.crc, meta.version);
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
        check_version(call)?;
        match operation {
            Operation::GetObjectTagging => {
                let meta = self.find(context).await?;
                Ok(Reply::xml(write_tagging(&attributes(&meta)?.tags)))
            }
            Operation::PutObjectTagging => {
                let document = self.document(context, body).await?;
                let tags = parse_tagging(&document, OBJECT_TAGS_MAX)?;
                let mut access = context.access.clone();
                access.say_requested_tags(&tags);
                access.check(operation.action(), &call.arn())?;
                self.set_tags(context, &tags).await?;
                Ok(Reply::ok())
            }
            _ => {
                self.set_tags(context, &Tags::new()).await?;
                Ok(Reply::no_content())
            }
        }
    }

    async fn set_tags(&self, context: &Context, tags: &Tags) -> Result<(), Refusal> {
        let call = &context.call;
        for _ in 0..TRIES {
            let meta = self.find(context).await?;
            let mut attributes = attributes(&meta)?;
            attributes.tags.clone_from(tags);
            attributes.modified_ms = Some(modified_ms(&meta, &attributes));
            let seal = Seal {
                etag: kept_etag(&meta),
                attributes: attributes.encode()?.into(),
            };
            match self.store.reseal(&call.bucket, &call.key, meta, seal).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Store::PreconditionFailed => {}
                Err(error) => return Err(refusal(&error)),
            }
        }
        refused(
            Code::OperationAborted,
            "A conflicting conditional operation is currently in progress against this resource. Please \
             try again.",
        )
    }
}

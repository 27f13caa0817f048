//! Removing objects, one or many.

use std::sync::Arc;

use ashlar_cluster_s3::conditional::{Etags, WriteIf};
use ashlar_cluster_s3::documents::{ToDelete, parse_delete};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::manifest::Precondition;
use ashlar_layout::names::check_key;
use ashlar_node_client::{Client, Code as Store, DeleteOptions};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::access::Access;
use crate::call::arn;
use crate::digests::Sent;
use crate::faults::{internal, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway};
use crate::inbound::Inbound;
use crate::objects::check_version;
use crate::reply::Reply;

/// Objects of one request that are removed at once.
const AT_ONCE: usize = 32;
/// So often a removal is tried again whose condition holds all the same.
const TRIES: usize = 4;

/// Removes an object, if its ETag is one of these.
async fn remove(
    store: &Client,
    bucket: &str,
    key: &str,
    condition: Option<&Etags>,
) -> Result<(), Refusal> {
    let condition = condition
        .map(|tags| WriteIf::Matches(tags.clone()))
        .unwrap_or_default();
    for _ in 0..TRIES {
        let precondition = match &condition {
            WriteIf::Always => Precondition::None,
            condition => {
                let current = match store.head(bucket, key).await {
                    Ok(meta) => Some(ashlar_cluster_s3::conditional::Current {
                        etag: ashlar_cluster_s3::conditional::etag(&meta.manifest, meta.version),
                        version: meta.version,
                    }),
                    Err(error) if is_absent(&error) => None,
                    Err(error) => return Err(refusal(&error)),
                };
                match condition.decide(current.as_ref()) {
                    Ok(precondition) => precondition,
                    Err(refusal) if refusal.code == Code::NoSuchKey => {
                        return refused(
                            Code::PreconditionFailed,
                            "At least one of the pre-conditions you specified did not hold: If-Match",
                        );
                    }
                    Err(refusal) => return Err(refusal),
                }
            }
        };
        let options = DeleteOptions {
            precondition,
            ..DeleteOptions::default()
        };
        match store.delete(bucket, key, options).await {
            Ok(_) => return Ok(()),
            // Somebody was faster: whether the condition holds of what stands there now is asked again.
            Err(error) if error.code() == Store::PreconditionFailed => {}
            Err(error) => return Err(refusal(&error)),
        }
    }
    refused(
        Code::ConditionalRequestConflict,
        "The conditional request cannot succeed due to a conflicting operation against this resource.",
    )
}

impl Gateway {
    /// DeleteObject.
    pub(crate) async fn delete_object(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        check_version(call)?;
        let condition = call.header("if-match").map(Etags::parse);
        remove(&self.store, &call.bucket, &call.key, condition.as_ref()).await?;
        let mut reply = Reply::no_content();
        if call.param("versionId").is_some() {
            reply.set("x-amz-version-id", "null");
        }
        Ok(reply)
    }

    /// DeleteObjects.
    pub(crate) async fn delete_objects(
        self: &Arc<Self>,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        if !Sent::of(call)?.is_some() {
            return refused(
                Code::InvalidRequest,
                "Missing required header for this request: Content-MD5",
            );
        }
        let document = self.document(context, body).await?;
        let (objects, quiet) = parse_delete(&document)?;
        drop(document);
        let by_tags = context.access.looks_at_existing_tags();
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        let mut results: Vec<Option<Result<(), Refusal>>> = vec![None; objects.len()];
        for (i, object) in objects.iter().enumerate() {
            let checked = check_one(object);
            // Whether it may be removed may depend on the tags that it has: then that is asked below.
            let checked = match by_tags {
                true => checked,
                false => check_may(&context.access, &call.bucket, object).and(checked),
            };
            if let Err(refusal) = checked {
                results[i] = Some(Err(refusal));
                continue;
            }
            let access = by_tags.then(|| (context.access.clone(), object.clone()));
            let (this, bucket) = (self.clone(), call.bucket.clone());
            let (key, condition) = (object.key.clone(), object.etag.as_deref().map(Etags::parse));
            let at_once = at_once.clone();
            tasks.spawn(async move {
                // Nobody closes it.
                let _permit = at_once.acquire_owned().await;
                if let Some((mut access, object)) = access {
                    let may = match this.say_tags_of(&mut access, &bucket, &key).await {
                        Ok(()) => check_may(&access, &bucket, &object),
                        Err(refusal) => Err(refusal),
                    };
                    if may.is_err() {
                        return (i, may);
                    }
                }
                let removed = remove(&this.store, &bucket, &key, condition.as_ref());
                (i, removed.await)
            });
        }
        while let Some(done) = tasks.join_next().await {
            let (i, result) = done.map_err(internal)?;
            results[i] = Some(result);
        }
        let document = Xml::document("DeleteResult", |xml| {
            for (object, result) in objects.iter().zip(results) {
                match result {
                    Some(Ok(())) if quiet => {}
                    Some(Ok(())) => xml.element("Deleted", |xml| {
                        xml.text("Key", &object.key);
                        xml.some("VersionId", object.version.as_deref());
                    }),
                    Some(Err(refusal)) => write_error(xml, object, &refusal),
                    None => write_error(xml, object, &internal("it was not tried")),
                }
            }
        });
        Ok(Reply::xml(document))
    }
}

fn write_error(xml: &mut Xml, object: &ToDelete, refusal: &Refusal) {
    xml.element("Error", |xml| {
        xml.text("Key", &object.key);
        xml.some("VersionId", object.version.as_deref());
        xml.text("Code", refusal.code.as_str());
        xml.text("Message", &refusal.message);
    });
}

fn check_may(access: &Access, bucket: &str, object: &ToDelete) -> Result<(), Refusal> {
    let action = match &object.version {
        None => "s3:DeleteObject",
        Some(_) => "s3:DeleteObjectVersion",
    };
    access.check(action, &arn(bucket, &object.key))
}

fn check_one(object: &ToDelete) -> Result<(), Refusal> {
    if object.other_condition {
        return refused(
            Code::NotImplemented,
            "LastModifiedTime and Size are conditions of directory buckets",
        );
    }
    match object.version.as_deref() {
        None | Some("null") => {}
        Some(_) => return refused(Code::NoSuchVersion, "The specified version does not exist."),
    }
    if check_key(&object.key).is_err() {
        return refused(Code::KeyTooLongError, "Your key is too long");
    }
    Ok(())
}

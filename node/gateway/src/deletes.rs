//! Removing objects, one or many.

use std::collections::BTreeMap;
use std::sync::Arc;

use ashlar_cluster_s3::conditional::{Current, Etags, WriteIf, etag};
use ashlar_cluster_s3::documents::{ToDelete, parse_delete};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::tags::Tags;
use ashlar_cluster_s3::version_id;
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{NULL_VERSION, VersionTag};
use ashlar_layout::names::check_key;
use ashlar_node_client::{ClientError, Code as Store, ObjectError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::access::Access;
use crate::admit::of_version;
use crate::call::arn;
use crate::digests::Sent;
use crate::faults::{internal, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes};
use crate::inbound::Inbound;
use crate::locks::{asks_bypass, bypass, check_bypass};
use crate::reply::Reply;
use crate::versions::{Keeping, asked_version};

/// Objects of one request that are removed at once.
const AT_ONCE: usize = 32;
/// So often a removal is tried again whose condition holds all the same.
const TRIES: usize = 4;

/// What came of a removal, as far as it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Removed {
    /// The version that was named.
    version: Option<String>,
    /// The marker that was made, or removed.
    marker: Option<String>,
}

/// What may be asked for each of many.
const ACTIONS: [&str; 5] = [
    "s3:DeleteObject",
    "s3:DeleteObjectVersion",
    "s3:BypassGovernanceRetention",
    "s3:GetObject",
    "s3:GetObjectVersion",
];

fn unmet<T>() -> Result<T, Refusal> {
    refused(
        Code::PreconditionFailed,
        "At least one of the pre-conditions you specified did not hold: If-Match",
    )
}

/// Others were faster each time.
fn overtaken<T>() -> Result<T, Refusal> {
    refused(
        Code::ConditionalRequestConflict,
        "The conditional request cannot succeed due to a conflicting operation against this resource.",
    )
}

/// What is to be removed.
struct What<'a> {
    bucket: &'a str,
    key: &'a str,
    /// Which version of it.
    version: Option<Seq>,
    /// Only if its ETag is one of these.
    condition: Option<&'a Etags>,
    keeping: Keeping,
    /// Governance does not keep it.
    bypass: bool,
}

impl Gateway {
    /// Removes an object, or a version of one; or says by a marker that there is none.
    async fn remove(&self, what: &What<'_>) -> Result<Removed, Refusal> {
        match (what.version, what.keeping) {
            (None, _) => self.remove_current(what).await,
            (Some(NULL_VERSION), Keeping::Off) => {
                let removed = self.remove_current(what).await?;
                let version = Some(version_id::write(None));
                Ok(Removed { version, ..removed })
            }
            (Some(_), Keeping::Off) => {
                refused(Code::NoSuchVersion, "The specified version does not exist.")
            }
            (Some(version), _) => self.remove_version(what, version).await,
        }
    }

    async fn remove_version(&self, what: &What<'_>, version: Seq) -> Result<Removed, Refusal> {
        let named = |tag: Option<VersionTag>| {
            let tag = tag.unwrap_or(VersionTag {
                id: version,
                null: version == NULL_VERSION,
                ..VersionTag::default()
            });
            let id = version_id::write(Some(tag));
            Removed {
                marker: tag.marker.then(|| id.clone()),
                version: Some(id),
            }
        };
        let (bucket, key) = (what.bucket, what.key);
        for _ in 0..TRIES {
            let mut seen = None;
            if let Some(tags) = what.condition {
                let current = match self.store.head_version(bucket, key, version).await {
                    Ok(meta) => Current {
                        etag: etag(&meta.manifest, meta.id()),
                        version: meta.version,
                    },
                    Err(ClientError::Object(ObjectError::Marker { .. })) => return unmet(),
                    Err(error) if is_absent(&error) => return Ok(named(None)),
                    Err(error) => return Err(refusal(&error)),
                };
                WriteIf::Matches(tags.clone()).decide(Some(&current))?;
                // What any other version is made of never changes: of those it holds until they are gone.
                seen = (version == NULL_VERSION).then_some(current.version);
            }
            let dropped = self
                .store
                .drop_version(bucket, key, version, seen, what.bypass);
            match dropped.await {
                Ok(dropped) => return Ok(named(dropped.tag)),
                // Another one is called so by now, or it was written anew: it is asked of that one.
                Err(error) if seen.is_some() && error.code() == Store::PreconditionFailed => {}
                Err(error) => return Err(refusal(&error)),
            }
        }
        overtaken()
    }

    async fn remove_current(&self, what: &What<'_>) -> Result<Removed, Refusal> {
        let What {
            bucket,
            key,
            keeping,
            ..
        } = *what;
        let condition = what
            .condition
            .map(|tags| WriteIf::Matches(tags.clone()))
            .unwrap_or_default();
        for _ in 0..TRIES {
            let precondition = match self.precondition(bucket, key, &condition).await {
                Ok(precondition) => precondition,
                Err(refusal) if refusal.code == Code::NoSuchKey => return unmet(),
                Err(refusal) => return Err(refusal),
            };
            match self.take_away(bucket, key, precondition, keeping).await {
                Ok(outcome) => {
                    return Ok(Removed {
                        version: None,
                        marker: keeping.marked(outcome.version),
                    });
                }
                // Somebody was faster: whether the condition holds of what stands there now is asked again.
                Err(error)
                    if matches!(error.code(), Store::PreconditionFailed | Store::NotKept) => {}
                Err(error) => return Err(refusal(&error)),
            }
        }
        overtaken()
    }

    /// Refuses to look at the ETag of an object for who may not read that: what is then answered would tell it.
    async fn check_reads(
        &self,
        mut access: Access,
        (bucket, key): (&str, &str),
        version: Option<Seq>,
    ) -> Result<(), Refusal> {
        let action = of_version(Operation::GetObject, version.is_some());
        let resource = arn(bucket, key);
        if !access.looks_at_existing_tags() && !access.waits_for_object(action, &resource) {
            return access.check(action, &resource);
        }
        // Whether it may be read is said by its tags, or by whose it is.
        match self.head(bucket, key, version).await {
            Ok(meta) => {
                let found = attributes(&meta)?;
                access.say_existing_tags(&found.tags);
                access.check_of(action, &resource, &found)
            }
            Err(error) if is_absent(&error) => {
                access.say_existing_tags(&Tags::new());
                let absent = access.absent(bucket, key);
                match absent.code == Code::NoSuchKey || access.may(action, &resource) {
                    true => Ok(()),
                    false => Err(absent),
                }
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    /// DeleteObject.
    pub(crate) async fn delete_object(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        let condition = call.header("if-match").map(Etags::parse);
        let version = asked_version(call)?;
        let bypass = version.is_some() && bypass(&context.access, call, &call.arn())?;
        if let Some(Etags::These(_)) = condition {
            let (access, names) = (context.access.clone(), (&*call.bucket, &*call.key));
            self.check_reads(access, names, version).await?;
        }
        let removed = self
            .remove(&What {
                bucket: &call.bucket,
                key: &call.key,
                version,
                condition: condition.as_ref(),
                keeping: context.keeping(),
                bypass,
            })
            .await?;
        let mut reply = Reply::no_content();
        if let Some(id) = removed.version.as_ref().or(removed.marker.as_ref()) {
            reply.set("x-amz-version-id", id);
        }
        if removed.marker.is_some() {
            reply.set("x-amz-delete-marker", "true");
        }
        Ok(reply)
    }

    /// Removes one of many. `access` is given if that depends on the tags that it has, and `reads` if it may depend on
    /// its ETag.
    async fn remove_one(
        &self,
        bucket: &str,
        removal: &Removal,
        (access, reads): (Option<Access>, Option<Access>),
        keeping: Keeping,
    ) -> Result<Removed, Refusal> {
        let (object, version) = (&removal.object, removal.version);
        if let Some(mut access) = access {
            self.say_tags_of(&mut access, bucket, &object.key, version)
                .await?;
            check_may(&access, bucket, object, removal.bypass)?;
        }
        let condition = object.etag.as_deref().map(Etags::parse);
        if let (Some(Etags::These(_)), Some(mut access)) = (&condition, reads) {
            access.say_version(object.version.as_deref());
            self.check_reads(access, (bucket, &object.key), version)
                .await?;
        }
        let what = What {
            bucket,
            key: &object.key,
            version,
            condition: condition.as_ref(),
            keeping,
            bypass: removal.bypass,
        };
        self.remove(&what).await
    }

    /// DeleteObjects: of one key one after another, for each other one that goes may change what is current.
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
        // The document may have taken a while to come.
        let kept = self.still_kept(&call.bucket, context.known());
        let keeping = kept.await?.keeping;
        let by_tags = context.access.looks_at_tags_to(&ACTIONS);
        let mut results: Vec<Option<Result<Removed, Refusal>>> = vec![None; objects.len()];
        let mut by_key: BTreeMap<&str, Vec<Removal>> = BTreeMap::new();
        for (i, object) in objects.iter().enumerate() {
            // Policies may take a while to be asked a thousand times.
            tokio::task::yield_now().await;
            let version = check_one(object);
            let may = version.and_then(|version| {
                let bypass = version.is_some() && asks_bypass(call);
                // Whether it may be removed may depend on the tags that it has: then that is asked below.
                if !by_tags {
                    check_may(&context.access, &call.bucket, object, bypass)?;
                }
                Ok((version, bypass))
            });
            match may {
                Ok((version, bypass)) => {
                    let of_key = by_key.entry(&object.key).or_default();
                    of_key.push(Removal {
                        i,
                        object: object.clone(),
                        version,
                        bypass,
                    });
                }
                Err(refusal) => results[i] = Some(Err(refusal)),
            }
        }
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        for (_, mut removals) in by_key {
            // What is current goes last: each time that it went what is current then would have to be looked for.
            removals.sort_by_key(|it| (it.version.is_none(), it.version));
            let access = by_tags.then(|| context.access.clone());
            let named = removals.iter().any(|it| it.object.etag.is_some());
            let reads = named.then(|| context.access.clone());
            let (this, bucket, at_once) = (self.clone(), call.bucket.clone(), at_once.clone());
            tasks.spawn(async move {
                // Nobody closes it.
                let _permit = at_once.acquire_owned().await;
                let mut done = Vec::with_capacity(removals.len());
                for removal in removals {
                    let by = (access.clone(), reads.clone());
                    let removed = this.remove_one(&bucket, &removal, by, keeping);
                    done.push((removal.i, removed.await));
                }
                done
            });
        }
        while let Some(done) = tasks.join_next().await {
            for (i, result) in done.map_err(internal)? {
                results[i] = Some(result);
            }
        }
        let document = Xml::document("DeleteResult", |xml| {
            for (object, result) in objects.iter().zip(results) {
                match result {
                    Some(Ok(_)) if quiet => {}
                    Some(Ok(removed)) => xml.element("Deleted", |xml| {
                        xml.text("Key", &object.key);
                        xml.some("VersionId", removed.version.as_deref());
                        if let Some(marker) = &removed.marker {
                            xml.value("DeleteMarker", true);
                            xml.text("DeleteMarkerVersionId", marker);
                        }
                    }),
                    Some(Err(refusal)) => write_error(xml, object, &refusal),
                    None => write_error(xml, object, &internal("it was not tried")),
                }
            }
        });
        Ok(Reply::xml(document))
    }
}

/// One of many that are to be removed.
struct Removal {
    /// Which one.
    i: usize,
    object: ToDelete,
    version: Option<Seq>,
    bypass: bool,
}

fn write_error(xml: &mut Xml, object: &ToDelete, refusal: &Refusal) {
    xml.element("Error", |xml| {
        xml.text("Key", &object.key);
        xml.some("VersionId", object.version.as_deref());
        xml.text("Code", refusal.code.as_str());
        xml.text("Message", &refusal.message);
    });
}

fn check_may(
    access: &Access,
    bucket: &str,
    object: &ToDelete,
    bypass: bool,
) -> Result<(), Refusal> {
    let action = match &object.version {
        None => "s3:DeleteObject",
        Some(_) => "s3:DeleteObjectVersion",
    };
    let resource = arn(bucket, &object.key);
    // The request itself names no version.
    let named = object.version.as_deref().map(|version| {
        let mut access = access.clone();
        access.say_version(Some(version));
        access
    });
    let access = named.as_ref().unwrap_or(access);
    access.check(action, &resource)?;
    match bypass {
        true => check_bypass(access, &resource),
        false => Ok(()),
    }
}

/// Which version is to be removed; refuses what cannot be.
fn check_one(object: &ToDelete) -> Result<Option<Seq>, Refusal> {
    if object.other_condition {
        return refused(
            Code::NotImplemented,
            "LastModifiedTime and Size are conditions of directory buckets",
        );
    }
    if check_key(&object.key).is_err() {
        return refused(Code::KeyTooLongError, "Your key is too long");
    }
    let version = object.version.as_deref().map(version_id::parse);
    version.transpose()
}

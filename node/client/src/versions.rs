//! Versions of objects: listed across partitions, kept, removed.
//!
//! Invariants:
//! - as of any listing, a page is in order and without gap;
//! - who removes the current version names what is current then, as it was found; the journal refuses it if that is not
//!   so any more, and it is looked for again;
//! - who names the entry that wrote a version removes that one, and none that took its name meanwhile;
//! - what is current and no version yet is made one before a new one takes its place: whoever is told so by the journal
//!   does that and goes on, whatever the bucket's configuration said to whom.

use std::sync::Arc;

use ashlar_cluster_object::common::unexpected;
use ashlar_cluster_object::{Code, Delete, Making, ObjectError};
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{Body, NULL_VERSION, Precondition, Then, VersionTag};
use ashlar_layout::message::{ObjectMeta, Reply, Request, VersionPage};
use bytes::Bytes;

use crate::client::{Client, Turn};
use crate::error::ClientError;
use crate::inner::Inner;
use crate::list::{self, Page};
use crate::options::{
    DeleteOutcome, ListOptions, PutOutcome, Seal, VersionDropped, VersionsOptions,
};
use crate::put;

/// So often a removal is tried again that others got in the way of.
pub(crate) const TRIES: usize = 16;

/// Makes the current object the `null` version; if that name is another one's that is locked, a version all the same.
async fn keep(
    inner: &Arc<Inner>,
    bucket: &str,
    key: &str,
    meta: ObjectMeta,
) -> Result<PutOutcome, ClientError> {
    let again = |tag| Making::Again {
        tag,
        current: true,
        modified_ms: meta.modified_ms,
    };
    let names = (bucket, key);
    let as_null = (same(&meta), again(VersionTag::of_plain(meta.version)));
    match put::reseal(inner, names, meta.clone(), as_null, Turn::Within).await {
        // The null version that there is has to stay: this one gets a name of its own.
        Err(error) if error.code() == Code::Locked => {
            let tag = VersionTag {
                id: meta.version,
                ..VersionTag::default()
            };
            let named = (same(&meta), again(tag));
            put::reseal(inner, names, meta, named, Turn::Within).await
        }
        kept => kept,
    }
}

/// What is kept with an object, as it is.
fn same(meta: &ObjectMeta) -> Seal {
    Seal {
        etag: meta.manifest.etag,
        attributes: meta.manifest.attributes.clone().into(),
    }
}

/// See [`Client::lock_version`].
pub(crate) async fn lock(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    (meta, current): (ObjectMeta, bool),
    lock: Lock,
    bypass: bool,
) -> Result<PutOutcome, ClientError> {
    let making = Making::Locked {
        tag: VersionTag {
            lock,
            ..tag_of(&meta)
        },
        seen: meta.version,
        current,
        modified_ms: meta.modified_ms,
        bypass,
    };
    let seal = same(&meta);
    let locked = put::reseal(inner, (bucket, key), meta, (seal, making), Turn::Own).await;
    if matches!(&locked, Err(error) if error.code() == Code::NotKept) {
        // Two are the null one: what is current takes the other one's place, or another name.
        make_way(inner, bucket, key, Precondition::None).await?;
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let detail = "it has become a version by now".to_owned();
        return Err(ObjectError::PreconditionFailed {
            bucket,
            key,
            detail,
        }
        .into());
    }
    locked
}

/// Makes what is current a version, if it is none, so that a new one can come; gives what has to hold for that one
/// then. It is the same object, though another entry wrote it: a condition that named that one names this one. It is a
/// part of the operation that wants to make something, which holds its place among those under way.
pub(crate) async fn make_way(
    inner: &Arc<Inner>,
    bucket: &str,
    key: &str,
    precondition: Precondition,
) -> Result<Precondition, ClientError> {
    let Some(meta) = current(inner, bucket, key, None, Turn::Within).await? else {
        return Ok(precondition);
    };
    if meta.tag.is_some() {
        return Ok(precondition);
    }
    let version = meta.version;
    // Boxed, because it puts as well; no put of a version that is there has to make way.
    match Box::pin(keep(inner, bucket, key, meta)).await {
        Ok(kept) if precondition == Precondition::Version(version) => {
            Ok(Precondition::Version(kept.version))
        }
        Ok(_) => Ok(precondition),
        // It is another one by now.
        Err(error) if matches!(error.code(), Code::PreconditionFailed | Code::NotFound) => {
            Ok(precondition)
        }
        Err(error) => Err(error),
    }
}

/// Puts a marker, as a new version.
pub(crate) async fn mark(
    client: &Client,
    (bucket, key): (&str, &str),
    mut precondition: Precondition,
    null: bool,
) -> Result<DeleteOutcome, ClientError> {
    let inner = &client.inner;
    let mut tries = TRIES;
    loop {
        let mark = Delete::mark(inner.common.clone(), bucket, key, precondition, null)?;
        let marked = client.remove(mark).await;
        tries -= 1;
        if tries == 0 || !matches!(&marked, Err(error) if error.code() == Code::NotKept) {
            return marked;
        }
        precondition = make_way(inner, bucket, key, precondition).await?;
    }
}

/// What is current, a marker included; none if nothing is.
async fn current(
    inner: &Arc<Inner>,
    bucket: &str,
    key: &str,
    version: Option<Seq>,
    turn: Turn,
) -> Result<Option<ObjectMeta>, ClientError> {
    match list::head(inner, (bucket, key), version, turn).await {
        Ok(meta) => Ok(Some(meta)),
        Err(ClientError::Object(ObjectError::Marker { meta, .. })) => Ok(Some(*meta)),
        Err(error) if error.code() == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which version an object is that has no tag.
fn tag_of(meta: &ObjectMeta) -> VersionTag {
    meta.tag.unwrap_or(VersionTag::of_plain(meta.version))
}

/// The newest version that is older than this one, in this place; none if it has to be looked for again.
async fn before(
    inner: &Arc<Inner>,
    bucket: &str,
    key: &str,
    (slot, id): (Seq, Seq),
) -> Result<Option<(Then, Bytes)>, ClientError> {
    let options = VersionsOptions {
        list: ListOptions {
            prefix: key.to_owned(),
            after: key.to_owned(),
            max: 1,
            ..ListOptions::default()
        },
        after_id: Some(id),
    };
    let page = list(inner, bucket, &options).await?;
    let next = page.versions.into_iter().find(|it| it.key == key);
    let Some(tag) = next.and_then(|it| it.tag) else {
        return Ok(Some((Then::Nothing, Bytes::new())));
    };
    let Some(meta) = current(inner, bucket, key, Some(tag.slot()), Turn::Own).await? else {
        return Ok(None);
    };
    if meta.tag.is_none() || tag.slot() == slot {
        // Both are the null one: what is current is no version yet, or was none.
        return Ok(None);
    }
    let mut payload = Bytes::new();
    if meta.manifest.body == Body::Inline && meta.manifest.size > 0 {
        match put::inline_of(inner, (bucket, key), Some(tag.slot()), &meta, Turn::Own).await? {
            Some(bytes) => payload = bytes,
            None => return Ok(None),
        }
    }
    let then = Then::Version {
        tag: tag_of(&meta),
        seen: meta.version,
        modified_ms: meta.modified_ms,
        manifest: meta.manifest,
    };
    Ok(Some((then, payload)))
}

/// Refuses a version that another entry wrote than was seen.
fn check_seen(
    (bucket, key): (&str, &str),
    meta: &ObjectMeta,
    seen: Option<Seq>,
) -> Result<(), ClientError> {
    if seen.is_none_or(|seen| seen == meta.version) {
        return Ok(());
    }
    let (bucket, key) = (bucket.to_owned(), key.to_owned());
    let detail = "another entry has written that version by now".to_owned();
    Err(ObjectError::PreconditionFailed {
        bucket,
        key,
        detail,
    }
    .into())
}

/// See [`Client::drop_version`].
pub(crate) async fn drop_version(
    client: &Client,
    (bucket, key): (&str, &str),
    slot: Seq,
    seen: Option<Seq>,
    bypass: bool,
) -> Result<VersionDropped, ClientError> {
    let inner = &client.inner;
    for _ in 0..TRIES {
        let now = current(inner, bucket, key, None, Turn::Own).await?;
        let entry = now.as_ref().map(|meta| meta.version);
        let now = now.filter(|meta| match meta.tag {
            Some(tag) => tag.slot() == slot,
            None => slot == NULL_VERSION,
        });
        let (tag, precondition, then, payload) = match now {
            Some(meta) => {
                check_seen((bucket, key), &meta, seen)?;
                let tag = tag_of(&meta);
                let Some((then, payload)) = before(inner, bucket, key, (slot, tag.id)).await?
                else {
                    // Two may be the null one: this one takes the other's place then.
                    make_way(inner, bucket, key, Precondition::None).await?;
                    continue;
                };
                (tag, Precondition::Version(meta.version), then, payload)
            }
            None => match current(inner, bucket, key, Some(slot), Turn::Own).await? {
                None => return Ok(VersionDropped { tag: None }),
                Some(meta) => {
                    check_seen((bucket, key), &meta, seen)?;
                    let precondition = match (seen, entry) {
                        (None, _) => Precondition::None,
                        // Another one of its name would be current first, and so another entry than this.
                        (Some(_), Some(entry)) => Precondition::Version(entry),
                        (Some(_), None) => Precondition::Absent,
                    };
                    (tag_of(&meta), precondition, Then::Same, Bytes::new())
                }
            },
        };
        let common = inner.common.clone();
        let drop = Delete::version(
            common,
            (bucket, key),
            precondition,
            (slot, then, bypass),
            payload,
        )?;
        match client.remove(drop).await {
            Ok(_) => return Ok(VersionDropped { tag: Some(tag) }),
            Err(error) if error.code() == Code::NotFound => {
                return Ok(VersionDropped { tag: None });
            }
            Err(error) if error.code() == Code::PreconditionFailed => {}
            Err(error) if error.code() == Code::NotKept => {
                make_way(inner, bucket, key, Precondition::None).await?;
            }
            Err(error) => return Err(error),
        }
    }
    // No condition of the caller's failed: others came first each time.
    let detail = format!("versions of '{key}' in bucket '{bucket}' change too fast");
    Err(ObjectError::Busy { detail }.into())
}

/// See [`Client::end_version`].
pub(crate) async fn end(
    client: &Client,
    names: (&str, &str),
    current: Seq,
    (slot, alone): (Seq, bool),
) -> Result<DeleteOutcome, ClientError> {
    let then = if alone { Then::Nothing } else { Then::Same };
    let (common, only) = (client.inner.common.clone(), Precondition::Version(current));
    let drop = Delete::version(common, names, only, (slot, then, false), Bytes::new())?;
    client.remove(drop).await
}

impl Page for VersionPage {
    /// A key, and a version of it; without one, behind all of them.
    type Place = (String, Option<Seq>);

    fn request(
        partition: PartitionId,
        bucket: &str,
        options: &ListOptions,
        (after, after_id): Self::Place,
        max: u32,
    ) -> Request {
        Request::ListVersions {
            partition,
            bucket: bucket.to_owned(),
            prefix: options.prefix.clone(),
            delimiter: options.delimiter.clone(),
            after,
            after_id,
            max,
        }
    }

    fn of(reply: Reply) -> Result<VersionPage, ClientError> {
        match reply {
            Reply::Versions(page) => Ok(page),
            other => Err(unexpected("Versions", &other).into()),
        }
    }

    fn held(&self) -> usize {
        self.versions.len() + self.prefixes.len()
    }

    fn last(&self) -> Option<Self::Place> {
        let version = self.versions.last().map(|it| (&it.key, Some(it.id())));
        let last = version.max(self.prefixes.last().map(|prefix| (prefix, None)));
        last.map(|(key, id)| (key.clone(), id))
    }

    fn next(&mut self) -> &mut Option<Self::Place> {
        &mut self.next
    }

    fn take_in(&mut self, other: VersionPage) {
        self.versions.extend(other.versions);
        self.prefixes.extend(other.prefixes);
    }

    fn key(place: &Self::Place) -> &str {
        &place.0
    }

    fn is_behind(one: &Self::Place, other: &Self::Place) -> bool {
        let newer = |a: Option<Seq>, b: Option<Seq>| b.is_some_and(|b| a.is_none_or(|a| a < b));
        one.0 > other.0 || one.0 == other.0 && newer(one.1, other.1)
    }
}

/// One page of a bucket's versions.
pub(crate) async fn list(
    inner: &Arc<Inner>,
    bucket: &str,
    options: &VersionsOptions,
) -> Result<VersionPage, ClientError> {
    let after = (options.list.after.clone(), options.after_id);
    list::list(inner, bucket, &options.list, after).await
}

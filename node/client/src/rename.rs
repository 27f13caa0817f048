//! Objects that get another key of their bucket, or of which something else is remembered.
//!
//! Invariant: what is proposed is what the caller found; an object that rides in the journal is read once more for it,
//! and is the same then, or the caller is told that it is another one.

use std::sync::Arc;

use ashlar_cluster_object::{ObjectError, Rename};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::Body;
use ashlar_layout::message::ObjectMeta;
use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use crate::client::Turn;
use crate::drive::Drive;
use crate::error::ClientError;
use crate::inner::Inner;
use crate::options::{RenameOptions, Seal};
use crate::put;

/// See [`crate::Client::rename`].
pub(crate) async fn rename(
    inner: &Arc<Inner>,
    bucket: &str,
    (source, key): (&str, &str),
    meta: ObjectMeta,
    options: RenameOptions,
) -> Result<Seq, ClientError> {
    let found = whole(inner, (bucket, source), meta, Turn::Own).await?;
    let permit = Turn::Own.writer(inner).await?;
    let (common, seal) = (inner.common.clone(), options.seal);
    let seal = (seal.etag, seal.attributes.into());
    let names = (source, key);
    let rename = Rename::new(common, bucket, names, options.precondition, found, seal)?;
    drive(inner, rename, permit).await
}

/// Remembers something else of an object that is no version. See [`crate::Client::reseal`].
pub(crate) async fn again(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    meta: ObjectMeta,
    seal: Seal,
    turn: Turn,
) -> Result<Seq, ClientError> {
    let found = whole(inner, (bucket, key), meta, turn).await?;
    let permit = turn.writer(inner).await?;
    let seal = (seal.etag, seal.attributes.into());
    let rename = Rename::again(inner.common.clone(), bucket, key, found, seal)?;
    drive(inner, rename, permit).await
}

/// What was found, with all of it if it rides in the journal.
async fn whole(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    meta: ObjectMeta,
    turn: Turn,
) -> Result<(ObjectMeta, Bytes), ClientError> {
    if meta.manifest.body != Body::Inline || meta.manifest.size == 0 {
        return Ok((meta, Bytes::new()));
    }
    let found = put::inline_of(inner, (bucket, key), None, &meta, turn).await?;
    let payload = found.ok_or_else(|| ObjectError::PreconditionFailed {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        detail: "it is another object by now".to_owned(),
    })?;
    Ok((meta, payload))
}

async fn drive(
    inner: &Arc<Inner>,
    rename: Rename,
    permit: Option<OwnedSemaphorePermit>,
) -> Result<Seq, ClientError> {
    let mut drive = Drive::start(inner.clone(), rename, permit);
    drive.until_answered().await;
    let outcome = drive.machine().and_then(Rename::outcome).cloned();
    Ok(outcome.unwrap_or(Err(ObjectError::Aborted))?)
}

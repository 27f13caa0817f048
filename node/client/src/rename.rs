//! Objects that get another key of their bucket.
//!
//! Invariant: what is proposed is what the caller found; an object that rides in the journal is read once more for it,
//! and is the same then, or the caller is told that it is another one.

use std::sync::Arc;

use ashlar_cluster_object::{ObjectError, Rename};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::Body;
use ashlar_layout::message::ObjectMeta;
use bytes::Bytes;

use crate::client::Turn;
use crate::drive::Drive;
use crate::error::ClientError;
use crate::inner::Inner;
use crate::options::RenameOptions;
use crate::put;

/// See [`crate::Client::rename`].
pub(crate) async fn rename(
    inner: &Arc<Inner>,
    bucket: &str,
    (source, key): (&str, &str),
    meta: ObjectMeta,
    options: RenameOptions,
) -> Result<Seq, ClientError> {
    let mut payload = Bytes::new();
    if meta.manifest.body == Body::Inline && meta.manifest.size > 0 {
        let found = put::inline_of(inner, (bucket, source), None, &meta, Turn::Own).await?;
        payload = found.ok_or_else(|| ObjectError::PreconditionFailed {
            bucket: bucket.to_owned(),
            key: source.to_owned(),
            detail: "it is another object by now".to_owned(),
        })?;
    }
    let permit = Turn::Own.writer(inner).await?;
    let (common, seal) = (inner.common.clone(), options.seal);
    let seal = (seal.etag, seal.attributes.into());
    let names = (source, key);
    let found = (meta, payload);
    let rename = Rename::new(common, bucket, names, options.precondition, found, seal)?;
    let mut drive = Drive::start(inner.clone(), rename, permit);
    drive.until_answered().await;
    let outcome = drive.machine().and_then(Rename::outcome).cloned();
    Ok(outcome.unwrap_or(Err(ObjectError::Aborted))?)
}

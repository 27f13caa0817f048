//! An object on its way to the caller.

use std::ops::Range;
use std::sync::Arc;

use ashlar_cluster_object::{DataKey, Get, ObjectError};
use ashlar_layout::message::ObjectMeta;
use bytes::Bytes;

use crate::client::Turn;
use crate::drive::Drive;
use crate::error::ClientError;
use crate::inner::Inner;
use crate::options::GetOptions;

/// An object, or a part of one, in verified pieces.
///
/// Dropping it ends the reading. A reader that stops to ask for pieces costs a few stripes of
/// memory, and nothing else waits for it.
pub struct GetStream {
    drive: Drive<Get>,
    meta: ObjectMeta,
    range: Range<u64>,
}

impl std::fmt::Debug for GetStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GetStream")
            .field("meta", &self.meta)
            .field("range", &self.range)
            .finish()
    }
}

impl GetStream {
    /// Looks the object up, and waits for its first bytes: from then on its version stands.
    pub(crate) async fn open(
        inner: &Arc<Inner>,
        (bucket, key): (&str, &str),
        options: GetOptions,
        turn: Turn,
    ) -> Result<GetStream, ClientError> {
        let permit = turn.reader(inner).await?;
        let get = Get::new(inner.common.clone(), bucket, key, options.range)?;
        let get = get.of_version(options.version);
        let mut drive = Drive::start(inner.clone(), get, permit);
        drive.until_answered().await;
        let Some(get) = drive.machine() else {
            return Err(ObjectError::Aborted.into());
        };
        if let Some(error) = get.error_before_bytes() {
            return Err(error.clone().into());
        }
        let Some(meta) = get.meta().cloned() else {
            return Err(ObjectError::Aborted.into());
        };
        let range = get.range();
        Ok(GetStream { drive, meta, range })
    }

    /// What is known of the object.
    pub fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    /// Decrypts the pieces that come from here on: see [`crate::PutOptions::cipher`].
    pub fn decipher(&mut self, key: DataKey) {
        self.drive.with(|get, _, _| get.decipher(key));
    }

    /// The bytes that will come.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The next piece; `None` after the last one. An error is final. May be dropped at any time:
    /// no piece is lost.
    pub async fn next(&mut self) -> Option<Result<Bytes, ClientError>> {
        loop {
            if let Some(next) = self.drive.with(Get::take)? {
                return Some(next.map_err(ClientError::from));
            }
            if self.drive.machine().is_none_or(Get::is_ready) {
                return None;
            }
            self.drive.step().await;
        }
    }

    /// Whether witnesses said what the object is, and the partition's head was not asked.
    pub fn from_cache(&self) -> bool {
        self.drive.machine().is_some_and(Get::from_cache)
    }

    /// Shards that had to be rebuilt from others so far.
    pub fn rebuilt_shards(&self) -> u64 {
        self.drive.machine().map_or(0, Get::rebuilt)
    }
}

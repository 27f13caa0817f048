//! Users' keys and buckets' configurations: documents in the reserved bucket, read for each request.
//!
//! Invariants:
//! - what is used is what the store says now, or said a moment ago: a document that is kept here is taken while its
//!   lease lasts (see [`crate::kept`]), else if the store says that its version still stands (one round trip to the
//!   witnesses). Whoever changes one is told so when no lease of the old one is left: a key that was revoked is
//!   taken at no gateway. Requests that come together share that round trip, if it began after
//!   the last of them came. What is read meanwhile by documents that are kept is given to nobody before that;
//! - a document that cannot be read is an error, and never taken for one that is not there;
//! - a document is changed only if it is still the one that was read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ashlar_cluster_s3::bucket::BucketConfig;
use ashlar_cluster_s3::checksum::md5;
use ashlar_cluster_s3::operation::{Level, Operation};
use ashlar_cluster_s3::policy::{Of, Policy};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::system::{USERS, bucket_key, key_key};
use ashlar_cluster_s3::users::{Key, RootKey, Secret, User, is_key_id};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Etag, Precondition};
use ashlar_layout::message::{ListPage, ObjectMeta};
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::{
    Client, ClientError, Code as Store, DeleteOptions, GetOptions, ListOptions, PutOptions, Seal,
};
use bytes::{Bytes, BytesMut};

use crate::admit::{Asked, Reading};
use crate::faults::{busy, internal, is_absent, refusal, refused};
use crate::kept::{Kept, Since, Stands, settle};
use crate::together::Together;

/// Accounts that are kept.
const KEPT: usize = 4096;
/// So often a change is tried again that others got in the way of.
const TRIES: usize = 8;

/// A key, ready to be used.
#[derive(Debug)]
pub(crate) struct OpenKey {
    pub(crate) key: Key,
    pub(crate) secret: Secret,
    pub(crate) policy: Option<Policy>,
}

/// A bucket's configuration, ready to be used.
#[derive(Debug)]
pub(crate) struct OpenBucket {
    /// The document's version.
    pub(crate) version: Seq,
    pub(crate) config: BucketConfig,
    pub(crate) policy: Option<Policy>,
}

/// What decides what a request may do.
#[derive(Clone, Debug)]
pub(crate) struct Documents {
    /// The caller's key; none of a caller without.
    pub(crate) key: Option<Arc<OpenKey>>,
    /// The bucket's configuration; none of a bucket that was not made through S3, or is not there.
    pub(crate) bucket: Option<Arc<OpenBucket>>,
    /// Not before this the store was asked for them.
    pub(crate) asked: Instant,
}

impl Documents {
    /// Whether both are the very same.
    pub(crate) fn are(&self, others: &Documents) -> bool {
        fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
            match (one, other) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (None, None) => true,
                _ => false,
            }
        }
        same(self.key.as_ref(), others.key.as_ref())
            && same(self.bucket.as_ref(), others.bucket.as_ref())
    }
}

/// The documents.
#[derive(Debug)]
pub(crate) struct Directory {
    client: Client,
    root: RootKey,
    keys: Kept<OpenKey>,
    buckets: Kept<OpenBucket>,
    asked_keys: Together<Since<Arc<OpenKey>>>,
    asked_buckets: Together<Since<Option<Arc<OpenBucket>>>>,
    /// Accounts by their ids: who has one once has it for ever.
    accounts: Mutex<HashMap<String, String>>,
    /// All users are looked through by one request at a time: anybody who may put can name ids that nobody has.
    walk: tokio::sync::Mutex<()>,
}

/// A document, if there is one. Whatever keeps it from being read is an error.
pub(crate) async fn read_document(
    client: &Client,
    key: &str,
) -> Result<Option<(ObjectMeta, Bytes)>, ClientError> {
    let found = client.get(SYSTEM_BUCKET, key, GetOptions::default()).await;
    let mut found = match found {
        Ok(found) => found,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = found.meta().clone();
    let mut all = BytesMut::new();
    while let Some(piece) = found.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(Some((meta, all.freeze())))
}

/// Writes a document. Its ETag, of a bucket's, says whose it is.
pub(crate) async fn write_document(
    client: &Client,
    key: &str,
    bytes: Vec<u8>,
    etag: Etag,
    precondition: Precondition,
) -> Result<Seq, ClientError> {
    let options = PutOptions {
        precondition,
        seal: Seal {
            etag,
            attributes: Bytes::new(),
        },
        ..PutOptions::default()
    };
    let done = client
        .put_bytes(SYSTEM_BUCKET, key, bytes.into(), options)
        .await?;
    Ok(done.version)
}

/// What the ETag of a bucket's document says: whose the bucket is, by the account. So a listing tells. That of a user's
/// says it by the canonical id.
pub(crate) fn owner_etag(whose: &str) -> Etag {
    Etag {
        md5: md5(whose.as_bytes()),
        parts: 1,
    }
}

impl Directory {
    pub(crate) fn new(client: Client, root: RootKey) -> Directory {
        Directory {
            client,
            root,
            keys: Kept::default(),
            buckets: Kept::default(),
            asked_keys: Together::default(),
            asked_buckets: Together::default(),
            accounts: Mutex::default(),
            walk: tokio::sync::Mutex::default(),
        }
    }

    /// What decides about a request, as the store has it now.
    pub(crate) async fn documents(self: &Arc<Self>, request: &Asked) -> Result<Documents, Refusal> {
        let Asked { call, claim, .. } = request;
        let began = Instant::now();
        let anew = is_judged_anew(request);
        let key = async {
            let found = match claim.key_id() {
                Some(id) if anew => self.ask_key(id).await,
                Some(id) => self.key_since(id).await,
                None => return Ok((None, began)),
            };
            found.map(|(key, asked)| (Some(key), asked))
        };
        let bucket = async {
            match call.level {
                Level::Service => Ok((None, began)),
                _ if anew => self.ask_bucket(&call.bucket).await,
                _ => self.bucket_since(&call.bucket).await,
            }
        };
        let (key, bucket) = tokio::join!(key, bucket);
        let ((key, of_key), (bucket, of_bucket)) = (key?, bucket?);
        Ok(Documents {
            key,
            bucket,
            asked: of_key.min(of_bucket),
        })
    }

    /// The same as it was when the store was asked last: none if that is not known of both. Nothing may be told or
    /// done by them, unless it turns out that they still stand.
    pub(crate) fn kept(&self, request: &Asked) -> Option<Documents> {
        let Asked { call, claim, .. } = request;
        let mut asked = Instant::now();
        let key = match claim.key_id() {
            Some(id) => {
                let (key, since) = self.keys.last(id)?;
                asked = asked.min(since);
                Some(key)
            }
            None => None,
        };
        let bucket = match call.level {
            Level::Service => None,
            _ => {
                let (bucket, since) = self.buckets.last(&call.bucket)?;
                asked = asked.min(since);
                Some(bucket)
            }
        };
        Some(Documents { key, bucket, asked })
    }

    /// A key, by its id.
    pub(crate) async fn key(self: &Arc<Self>, id: &str) -> Result<Arc<OpenKey>, Refusal> {
        self.key_since(id).await.map(|(key, _)| key)
    }

    async fn key_since(self: &Arc<Self>, id: &str) -> Result<Since<Arc<OpenKey>>, Refusal> {
        match self.keys.stands(id, Instant::now()) {
            Stands::Yes(found) => Ok(found),
            Stands::Renew(found) => {
                let (this, id) = (self.clone(), id.to_owned());
                // If this is not answered, the next one asks.
                tokio::spawn(async move { this.ask_key(&id).await.map(drop) });
                Ok(found)
            }
            Stands::No => self.ask_key(id).await,
        }
    }

    /// The same, as the store has it now.
    async fn ask_key(&self, id: &str) -> Result<Since<Arc<OpenKey>>, Refusal> {
        if !is_key_id(id) {
            return no_key();
        }
        self.asked_keys.ask(id, || self.read_key(id)).await
    }

    async fn read_key(&self, id: &str) -> Result<Since<Arc<OpenKey>>, Refusal> {
        let asked = Instant::now();
        let found = read_document(&self.client, &key_key(id)).await;
        let (meta, bytes) = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.keys.forget(id);
                return no_key();
            }
            Err(error) if error.code() == Store::NoSuchBucket => return no_key(),
            Err(error) => return Err(refusal(&error)),
        };
        if let Some(open) = self.keys.version(id, meta.version) {
            self.keys.keep(id, meta.version, &open, asked);
            return Ok((open, asked));
        }
        let key = Key::decode(&bytes).map_err(internal)?;
        let secret = key.open(&self.root).map_err(internal)?;
        let policy = key.user.policy.as_deref();
        let policy = policy.map(|text| Policy::parse(text, Of::User)).transpose();
        // What cannot be understood must not be taken for nothing.
        let policy = policy.map_err(internal)?;
        let open = Arc::new(OpenKey {
            key,
            secret,
            policy,
        });
        self.keys.keep(id, meta.version, &open, asked);
        Ok((open, asked))
    }

    /// A bucket's configuration; none of a bucket that was not made through S3, or is not there.
    pub(crate) async fn bucket(
        self: &Arc<Self>,
        bucket: &str,
    ) -> Result<Option<Arc<OpenBucket>>, Refusal> {
        self.bucket_since(bucket).await.map(|(open, _)| open)
    }

    async fn bucket_since(
        self: &Arc<Self>,
        bucket: &str,
    ) -> Result<Since<Option<Arc<OpenBucket>>>, Refusal> {
        match self.buckets.stands(bucket, Instant::now()) {
            Stands::Yes((open, asked)) => Ok((Some(open), asked)),
            Stands::Renew((open, asked)) => {
                let (this, bucket) = (self.clone(), bucket.to_owned());
                // If this is not answered, the next one asks.
                tokio::spawn(async move { this.ask_bucket(&bucket).await.map(drop) });
                Ok((Some(open), asked))
            }
            Stands::No => self.ask_bucket(bucket).await,
        }
    }

    /// The same, as the store has it now.
    pub(crate) async fn ask_bucket(
        &self,
        bucket: &str,
    ) -> Result<Since<Option<Arc<OpenBucket>>>, Refusal> {
        let question = || self.read_bucket(bucket);
        self.asked_buckets.ask(bucket, question).await
    }

    async fn read_bucket(&self, bucket: &str) -> Result<Since<Option<Arc<OpenBucket>>>, Refusal> {
        let asked = Instant::now();
        let found = read_document(&self.client, &bucket_key(bucket)).await;
        let (meta, bytes) = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.buckets.forget(bucket);
                return Ok((None, asked));
            }
            Err(error) if error.code() == Store::NoSuchBucket => return Ok((None, asked)),
            Err(error) => return Err(refusal(&error)),
        };
        if let Some(open) = self.buckets.version(bucket, meta.version) {
            self.buckets.keep(bucket, meta.version, &open, asked);
            return Ok((Some(open), asked));
        }
        let config = BucketConfig::decode(&bytes).map_err(internal)?;
        let policy = config.policy.as_deref();
        let policy = policy
            .map(|text| Policy::parse(text, Of::Bucket(bucket)))
            .transpose();
        let open = Arc::new(OpenBucket {
            version: meta.version,
            policy: policy.map_err(internal)?,
            config,
        });
        self.buckets.keep(bucket, meta.version, &open, asked);
        Ok((Some(open), asked))
    }

    /// Which accounts have these canonical ids; of those that nobody has, nothing.
    pub(crate) async fn accounts(&self, ids: &[&str]) -> Result<HashMap<String, String>, Refusal> {
        let mut found = HashMap::new();
        {
            let kept = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
            let known = ids.iter().filter_map(|id| kept.get_key_value(*id));
            found.extend(known.map(|(id, account)| (id.clone(), account.clone())));
        }
        if ids.iter().all(|id| found.contains_key(*id)) {
            return Ok(found);
        }
        let _one = self.walk.lock().await;
        let mut after = String::new();
        while ids.iter().any(|id| !found.contains_key(*id)) {
            let page = reserved(&self.client, USERS, after).await?;
            let wanted = ids.iter().filter(|id| !found.contains_key(**id));
            let etags: Vec<Etag> = wanted.map(|id| owner_etag(id)).collect();
            for entry in page.objects {
                // Those of earlier versions of this program do not say whose they are.
                if !entry.etag.is_none() && !etags.contains(&entry.etag) {
                    continue;
                }
                let read = read_document(&self.client, &entry.key).await;
                if let Some((_, bytes)) = read.map_err(|error| refusal(&error))? {
                    let user = User::decode(&bytes).map_err(internal)?;
                    let id = user.canonical();
                    if ids.contains(&id.as_str()) {
                        found.insert(id, user.account);
                    }
                }
            }
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        let mut kept = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() + found.len() > KEPT {
            kept.clear();
        }
        kept.extend(found.clone());
        Ok(found)
    }

    /// Writes the configuration of a bucket that was just made, unless it is one of a later bucket of
    /// that name.
    pub(crate) async fn found_bucket(
        &self,
        bucket: &str,
        config: &BucketConfig,
    ) -> Result<(), Refusal> {
        for _ in 0..TRIES {
            let precondition = match self.ask_bucket(bucket).await?.0 {
                Some(open) if open.config.made_by > config.made_by => return Ok(()),
                Some(open) => Precondition::Version(open.version),
                None => Precondition::Absent,
            };
            match self.write_bucket(bucket, config, precondition).await {
                Err(error) if error.code() == Store::PreconditionFailed => {}
                written => return written.map_err(|error| refusal(&error)),
            }
        }
        busy()
    }

    /// Changes a bucket's configuration. `authorized`: what it was when the caller was found to be allowed
    /// to: if the bucket was made anew since, it may be somebody else's.
    pub(crate) async fn change_bucket(
        &self,
        bucket: &str,
        authorized: Option<&Arc<OpenBucket>>,
        change: impl Fn(&mut BucketConfig) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        for _ in 0..TRIES {
            let (now, _) = self.ask_bucket(bucket).await?;
            if !is_same(
                authorized.map(|open| &open.config),
                now.as_ref().map(|open| &open.config),
            ) {
                return busy();
            }
            let (mut config, precondition) = match &now {
                Some(open) => (open.config.clone(), Precondition::Version(open.version)),
                None => (BucketConfig::new("", 0), Precondition::Absent),
            };
            change(&mut config)?;
            if now.is_some_and(|open| open.config == config) {
                // Others who asked for the same were faster, and may not have been told yet.
                settle().await;
                return Ok(());
            }
            match self.write_bucket(bucket, &config, precondition).await {
                Err(error) if error.code() == Store::PreconditionFailed => {}
                written => return written.map_err(|error| refusal(&error)),
            }
        }
        busy()
    }

    async fn write_bucket(
        &self,
        bucket: &str,
        config: &BucketConfig,
        precondition: Precondition,
    ) -> Result<(), ClientError> {
        let bytes = match config.encode() {
            Ok(bytes) => bytes,
            Err(refusal) => {
                return Err(ClientError::Setup {
                    detail: refusal.to_string(),
                });
            }
        };
        let etag = owner_etag(&config.owner);
        write_document(&self.client, &bucket_key(bucket), bytes, etag, precondition).await?;
        // Of a new one, too: that of an earlier bucket of the name may have been taken away a moment ago, by somebody
        // who was stopped before they had waited.
        settle().await;
        Ok(())
    }

    /// Takes away the configuration of a bucket that is no more, unless it is another one's by now. `authorized`: what
    /// it was when the caller was found to be allowed to remove it.
    pub(crate) async fn forget_bucket(
        &self,
        bucket: &str,
        authorized: Option<&Arc<OpenBucket>>,
    ) -> Result<(), Refusal> {
        for _ in 0..TRIES {
            let (Some(now), _) = self.ask_bucket(bucket).await? else {
                break;
            };
            if !is_same(authorized.map(|open| &open.config), Some(&now.config)) {
                break;
            }
            let options = DeleteOptions {
                precondition: Precondition::Version(now.version),
                ..DeleteOptions::default()
            };
            let key = bucket_key(bucket);
            match self.client.delete(SYSTEM_BUCKET, &key, options).await {
                Err(error) if error.code() == Store::PreconditionFailed => {}
                Err(error) => return Err(refusal(&error)),
                Ok(_) => break,
            }
        }
        settle().await;
        Ok(())
    }

    /// Makes the bucket that all this stands in, if it is not there.
    pub(crate) async fn found(&self) -> Result<(), ClientError> {
        found(&self.client).await
    }
}

/// Makes the reserved bucket, if it is not there.
pub(crate) async fn found(client: &Client) -> Result<(), ClientError> {
    match client.create_bucket(SYSTEM_BUCKET).await {
        Err(error) if error.code() != Store::BucketExists => Err(error),
        _ => Ok(()),
    }
}

/// A page of what stands in the reserved bucket under keys that begin so, behind `after`.
pub(crate) async fn reserved(
    client: &Client,
    prefix: impl Into<String>,
    after: String,
) -> Result<ListPage, Refusal> {
    let options = ListOptions {
        prefix: prefix.into(),
        after,
        ..ListOptions::default()
    };
    let page = client.list(SYSTEM_BUCKET, options).await;
    page.map_err(|error| refusal(&error))
}

/// Whether a request is judged by what the store says after it came, for it changes what others are judged by: whoever
/// lost the right to do that does not undo what took it.
fn is_judged_anew(request: &Asked) -> bool {
    use Operation as O;
    let of_objects = match request.operation {
        O::PostObject | O::DeleteObjects | O::HeadBucket => true,
        operation => Reading::of(operation).is_some(),
    };
    request.call.level == Level::Bucket && !of_objects
}

/// Whether two documents, if there are any, are about the same bucket, of the same owner.
fn is_same(one: Option<&BucketConfig>, other: Option<&BucketConfig>) -> bool {
    // A bucket that was not made through S3 has no document until it is configured.
    let nobodys = BucketConfig::new("", 0);
    let (one, other) = (one.unwrap_or(&nobodys), other.unwrap_or(&nobodys));
    (&one.owner, one.made_by) == (&other.owner, other.made_by)
}

fn no_key<T>() -> Result<T, Refusal> {
    refused(
        Code::InvalidAccessKeyId,
        "The AWS Access Key Id you provided does not exist in our records.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_that_are_the_same() {
        let (ada, again, bob) = (
            BucketConfig::new("111111111111", 5),
            BucketConfig::new("111111111111", 9),
            BucketConfig::new("222222222222", 5),
        );
        let mut tagged = ada.clone();
        tagged.tags.push(("a".to_owned(), "b".to_owned()));
        assert!(is_same(Some(&ada), Some(&tagged)));
        for other in [Some(&again), Some(&bob), None] {
            assert!(!is_same(Some(&ada), other) && !is_same(other, Some(&ada)));
        }
        assert!(is_same(None, None));
        assert!(is_same(None, Some(&BucketConfig::new("", 0))));
    }
}

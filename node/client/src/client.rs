//! The client's operations.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use ashlar_cluster_object::{BufferPool, Code, Common, Delete, Making, ObjectError, Tuning};
use ashlar_layout::digest::Digest;
use ashlar_layout::ids::{ClientId, DeviceNo, NodeId, PartitionId, Seq};
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{Manifest, Precondition};
use ashlar_layout::message::{
    BucketMeta, ChainView, ListPage, NodeStatus, ObjectMeta, VersionPage,
};
use ashlar_layout::names::{check_bucket, check_key};
use ashlar_layout::pace::DevicePace;
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::audit::{self, Audited, ObjectAudit};
use crate::drive::Drive;
use crate::error::ClientError;
use crate::get::GetStream;
use crate::inner::{Inner, Links};
use crate::link::LinkSetup;
use crate::options::{
    ClientOptions, DeleteOptions, DeleteOutcome, Drained, GetOptions, ListOptions, PutOptions,
    PutOutcome, RenameOptions, Seal, Sealed, VersionDropped, VersionsOptions,
};
use crate::{list, nodes, put, rename, replicas, versions};

/// Devices hold back what audits ask for half a second at the most.
const HELD_MAX: Duration = Duration::from_millis(600);

/// A client of one cluster. Cheap to clone; clones share connections.
///
/// It lives in a tokio runtime. For the lowest latency run it on a current-thread runtime, or in
/// spawned tasks: a caller that is the main future of a multi-threaded runtime is woken across
/// threads.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

/// Waits until another operation may begin, at most so long.
pub(crate) async fn admit(
    permits: &Arc<Semaphore>,
    wait: Option<Duration>,
) -> Result<Option<OwnedSemaphorePermit>, ClientError> {
    let permit = permits.clone().acquire_owned();
    let admitted = match wait {
        None => Ok(permit.await),
        Some(wait) => tokio::time::timeout(wait, permit).await,
    };
    match admitted {
        // Nobody closes it.
        Ok(permit) => Ok(permit.ok()),
        Err(_) => Err(ObjectError::Busy {
            detail: format!(
                "this client has as many operations under way as it may, and none of them ended within \
                 {wait:?}. Nothing was done; try again later, or with more clients"
            ),
        }
        .into()),
    }
}

/// Whether something waits to be admitted, or belongs to an operation that was: if those waited for others, all that
/// may be under way could wait for each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    Own,
    Within,
}

impl Turn {
    /// To read.
    pub(crate) async fn reader(
        self,
        inner: &Inner,
    ) -> Result<Option<OwnedSemaphorePermit>, ClientError> {
        match self {
            Turn::Own => admit(&inner.readers, inner.options.admit_wait).await,
            Turn::Within => Ok(None),
        }
    }

    /// To write.
    pub(crate) async fn writer(
        self,
        inner: &Inner,
    ) -> Result<Option<OwnedSemaphorePermit>, ClientError> {
        match self {
            Turn::Own => admit(&inner.writers, inner.options.admit_wait).await,
            Turn::Within => Ok(None),
        }
    }
}

fn check(bucket: &str, key: Option<&str>) -> Result<(), ClientError> {
    let named = check_bucket(bucket).and_then(|()| key.map_or(Ok(()), check_key));
    named.map_err(|error| {
        ObjectError::BadRequest {
            detail: error.to_string(),
        }
        .into()
    })
}

impl Client {
    /// A client of the cluster that `map` describes. Connections are made when they are needed.
    pub fn connect(map: ClusterMap, options: ClientOptions) -> Result<Client, ClientError> {
        Client::with(map, options, None)
    }

    /// A client with limits and a cache of its own, which shares this one's connections: what both ask of a node
    /// at once goes out together ([`crate::corked`]). How connections are made is as this one's options say.
    pub fn sibling(&self, options: ClientOptions) -> Result<Client, ClientError> {
        let map = self.map().as_ref().clone();
        Client::with(map, options, Some(self.inner.links.clone()))
    }

    fn with(
        map: ClusterMap,
        options: ClientOptions,
        links: Option<Arc<Links>>,
    ) -> Result<Client, ClientError> {
        map.validate().map_err(|error| ClientError::Setup {
            detail: error.to_string(),
        })?;
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|error| ClientError::Setup {
            detail: format!("the system gives no random number to name this client: {error}"),
        })?;
        let client = ClientId(u64::from_le_bytes(random));
        let pool = BufferPool::new(options.buffers_kept);
        let links = links.unwrap_or_else(|| {
            Arc::new(Links::new(LinkSetup {
                cluster: map.cluster,
                connect_timeout: options.connect_timeout,
                silence_max: options.silence_max,
                pool: pool.clone(),
            }))
        });
        let tuning = Tuning {
            unavailable_wait: options.unavailable_wait,
            held: if options.patient {
                HELD_MAX
            } else {
                Duration::ZERO
            },
            put_stripes: options.put_stripes.max(1),
            put_stripes_kept: options.put_stripes.max(1).saturating_mul(2),
            get_stripes: options.get_stripes.max(1),
            cache_entries: if options.cache {
                options.cache_entries
            } else {
                0
            },
            cache_bytes: options.cache_bytes,
            ..Tuning::default()
        };
        let common = Common::new(Arc::new(map), client, pool, tuning);
        Ok(Client {
            inner: Arc::new(Inner::new(common, options, links)),
        })
    }

    /// The newest map that the client knows.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.inner.common.map()
    }

    /// Makes or replaces an object of what `body` gives. Nothing is visible before all of it is
    /// durable; if the source fails, nothing of it ever is. Dropping the future gives the put up,
    /// unless its last step, the manifest, is already on its way.
    pub async fn put(
        &self,
        bucket: &str,
        key: &str,
        body: impl AsyncRead + Unpin + Send,
        options: PutOptions,
    ) -> Result<PutOutcome, ClientError> {
        check(bucket, Some(key))?;
        let sealed = std::future::ready::<io::Result<Sealed>>;
        let seal = |given| sealed(Ok(given));
        put::put(&self.inner, bucket, key, body, options, seal).await
    }

    /// As [`Client::put`]. When all of `body` was read and nothing is visible yet, `seal` is asked what
    /// to remember of the object, and how to make it (it is given what the options say); an error of it fails
    /// the put, and leaves nothing.
    pub async fn put_sealed<F>(
        &self,
        bucket: &str,
        key: &str,
        body: impl AsyncRead + Unpin + Send,
        options: PutOptions,
        seal: impl FnOnce(Sealed) -> F + Send,
    ) -> Result<PutOutcome, ClientError>
    where
        F: Future<Output = io::Result<Sealed>> + Send,
    {
        check(bucket, Some(key))?;
        put::put(&self.inner, bucket, key, body, options, seal).await
    }

    /// Makes or replaces an object whose bytes are at hand.
    pub async fn put_bytes(
        &self,
        bucket: &str,
        key: &str,
        body: Bytes,
        options: PutOptions,
    ) -> Result<PutOutcome, ClientError> {
        check(bucket, Some(key))?;
        put::put_bytes(&self.inner, (bucket, key), body, options, Turn::Own).await
    }

    /// Makes or replaces an object of all bytes of `parts`, in their order: its manifest names their
    /// stripes, and nothing is moved. None of them may ride in the journal, unless it is empty.
    ///
    /// Nobody may free the parts while this is under way, or move their stripes: nodes leave those alone whose keys
    /// begin with [`ashlar_layout::names::SYSTEM_PARTS`] in the reserved bucket, and no others.
    ///
    /// If it succeeds their names are to be taken away with [`DeleteOptions::taken`]; if it fails and
    /// [`ClientError::is_uncertain`], nobody may ever free them.
    pub async fn compose(
        &self,
        bucket: &str,
        key: &str,
        parts: Vec<Manifest>,
        options: PutOptions,
    ) -> Result<PutOutcome, ClientError> {
        check(bucket, Some(key))?;
        put::compose(&self.inner, bucket, key, parts, options).await
    }

    /// Makes an object longer by all bytes of `parts`, as [`Client::compose`] takes them: what stands there is not
    /// moved either. `meta` is what was found of it: if it is another version by now, this is refused as a
    /// precondition that does not hold. If it rides in the journal, `parts` begin with a copy of it. Only for
    /// objects of buckets that never kept versions.
    pub async fn append(
        &self,
        bucket: &str,
        key: &str,
        meta: ObjectMeta,
        parts: Vec<Manifest>,
        seal: Seal,
    ) -> Result<PutOutcome, ClientError> {
        check(bucket, Some(key))?;
        if meta.tag.is_some() {
            let detail = "a version of an object is not made longer".to_owned();
            return Err(ObjectError::BadRequest { detail }.into());
        }
        put::append(&self.inner, (bucket, key), meta, parts, seal).await
    }

    /// Gives an object another key of its bucket, in the place of what is there: at any time it is seen under one of
    /// the two. `meta` is what was found of it: if another one stands there by now, or if the condition does not hold
    /// of what it would replace, this is refused as a precondition that does not hold. Where the two keys are in
    /// different partitions nothing is done ([`ashlar_cluster_object::Code::Apart`]). Gives its new version. Only for
    /// objects of buckets that never kept versions.
    pub async fn rename(
        &self,
        bucket: &str,
        (source, key): (&str, &str),
        meta: ObjectMeta,
        options: RenameOptions,
    ) -> Result<Seq, ClientError> {
        check(bucket, Some(source))?;
        check(bucket, Some(key))?;
        rename::rename(&self.inner, bucket, (source, key), meta, options).await
    }

    /// Keeps something else with an object, whose bytes stay where they are, and which is as old as before. `meta` is
    /// what was found of it: if it is another version by now, this is refused as a precondition that does not hold.
    pub async fn reseal(
        &self,
        bucket: &str,
        key: &str,
        meta: ObjectMeta,
        seal: Seal,
    ) -> Result<PutOutcome, ClientError> {
        check(bucket, Some(key))?;
        let making = match meta.tag {
            None => {
                let again = rename::again(
                    &self.inner,
                    (bucket, key),
                    meta.clone(),
                    seal.clone(),
                    Turn::Own,
                );
                match again.await {
                    // A head of before that knew this, or that may not write it yet, takes a put of it, which makes it
                    // younger.
                    Err(error) if matches!(error.code(), Code::BadRequest | Code::NotYet) => {
                        Making::Object
                    }
                    done => return done.map(|version| PutOutcome::again(version, &meta.manifest)),
                }
            }
            Some(tag) => Making::Again {
                tag,
                current: true,
                modified_ms: meta.modified_ms,
            },
        };
        put::reseal(&self.inner, (bucket, key), meta, (seal, making), Turn::Own).await
    }

    /// The same, of a version that is not the current one. If it is, or has become, the current one, or was written
    /// anew since `meta` was found, this is refused as a precondition that does not hold.
    pub async fn reseal_version(
        &self,
        bucket: &str,
        key: &str,
        meta: ObjectMeta,
        seal: Seal,
    ) -> Result<PutOutcome, ClientError> {
        check(bucket, Some(key))?;
        let Some(tag) = meta.tag else {
            let detail = "an object that is no version is the current one".to_owned();
            return Err(ObjectError::BadRequest { detail }.into());
        };
        // With the lock that it has: of the changes of a version this one names the entry that was looked at.
        let making = Making::Locked {
            tag,
            seen: meta.version,
            current: false,
            modified_ms: meta.modified_ms,
            bypass: false,
        };
        put::reseal(&self.inner, (bucket, key), meta, (seal, making), Turn::Own).await
    }

    /// Says that there is no object, by a new version: a `null` one takes the place of the one before that is
    /// called so.
    pub async fn mark_deleted(
        &self,
        bucket: &str,
        key: &str,
        precondition: Precondition,
        null: bool,
    ) -> Result<DeleteOutcome, ClientError> {
        check(bucket, Some(key))?;
        versions::mark(self, (bucket, key), precondition, null).await
    }

    /// Removes a version of an object, which [`ashlar_layout::manifest::VersionTag::slot`] names, or an object that is
    /// the `null` version. If it was the current one, the one before it is current then. What a lock keeps is not
    /// removed; `bypass`: who asks may do what governance forbids. `seen`: only the version that this entry wrote: if
    /// another one is called so by now, or that one was written anew, this is refused as a precondition that does not
    /// hold.
    pub async fn drop_version(
        &self,
        bucket: &str,
        key: &str,
        version: Seq,
        seen: Option<Seq>,
        bypass: bool,
    ) -> Result<VersionDropped, ClientError> {
        check(bucket, Some(key))?;
        versions::drop_version(self, (bucket, key), version, seen, bypass).await
    }

    /// Removes a version of an object that is not the current one, if `current` still is the entry that wrote what is
    /// current, and no lock keeps it: so whoever found before what is to be removed removes nothing else. `alone`: it
    /// is itself current, and was found to be the only one.
    pub async fn end_version(
        &self,
        bucket: &str,
        key: &str,
        current: Seq,
        version: Seq,
        alone: bool,
    ) -> Result<DeleteOutcome, ClientError> {
        check(bucket, Some(key))?;
        versions::end(self, (bucket, key), current, (version, alone)).await
    }

    /// Gives a version of an object another lock. `meta` is what was found of it, and `current` whether that was what
    /// is current: if it was changed meanwhile, this is refused as a precondition that does not hold. An object that
    /// is no version is made the `null` one by it. `bypass`: who asks may do what governance forbids.
    pub async fn lock_version(
        &self,
        bucket: &str,
        key: &str,
        (meta, current): (ObjectMeta, bool),
        lock: Lock,
        bypass: bool,
    ) -> Result<PutOutcome, ClientError> {
        check(bucket, Some(key))?;
        versions::lock(&self.inner, (bucket, key), (meta, current), lock, bypass).await
    }

    /// One page of a bucket's versions, in the order of the keys, across its partitions.
    pub async fn list_versions(
        &self,
        bucket: &str,
        options: VersionsOptions,
    ) -> Result<VersionPage, ClientError> {
        check(bucket, None)?;
        versions::list(&self.inner, bucket, &options).await
    }

    /// What is known of a version of an object.
    pub async fn head_version(
        &self,
        bucket: &str,
        key: &str,
        version: Seq,
    ) -> Result<ObjectMeta, ClientError> {
        check(bucket, Some(key))?;
        list::head(&self.inner, (bucket, key), Some(version), Turn::Own).await
    }

    /// Looks at every shard of an object, or of this version of it, and makes those again that are not whole if
    /// `mends`. None if there is no such object.
    pub async fn audit(
        &self,
        bucket: &str,
        key: &str,
        version: Option<Seq>,
        mends: bool,
    ) -> Result<Option<(ObjectMeta, Audited)>, ClientError> {
        check(bucket, Some(key))?;
        audit::audit(&self.inner, (bucket, key), version, mends).await
    }

    /// Begins to look at the shards of an object, or of this version of it, stripe by stripe. None if there is no such
    /// object.
    pub async fn audit_object(
        &self,
        bucket: &str,
        key: &str,
        version: Option<Seq>,
    ) -> Result<Option<ObjectAudit>, ClientError> {
        check(bucket, Some(key))?;
        ObjectAudit::open(&self.inner, (bucket, key), version).await
    }

    /// Reads an object or a part of it. Returns when the first bytes are there.
    pub async fn get(
        &self,
        bucket: &str,
        key: &str,
        options: GetOptions,
    ) -> Result<GetStream, ClientError> {
        check(bucket, Some(key))?;
        GetStream::open(&self.inner, (bucket, key), options, Turn::Own).await
    }

    /// What is known of an object.
    pub async fn head(&self, bucket: &str, key: &str) -> Result<ObjectMeta, ClientError> {
        check(bucket, Some(key))?;
        list::head(&self.inner, (bucket, key), None, Turn::Own).await
    }

    /// Removes an object; removing what is not there is no error. Returns when that is durable; the
    /// space is freed behind it.
    pub async fn delete(
        &self,
        bucket: &str,
        key: &str,
        options: DeleteOptions,
    ) -> Result<DeleteOutcome, ClientError> {
        check(bucket, Some(key))?;
        let common = self.inner.common.clone();
        let mut delete = Delete::new(common, bucket, key, options.precondition)?;
        if options.taken {
            delete = delete.of_taken();
        }
        self.remove(delete).await
    }

    pub(crate) async fn remove(&self, delete: Delete) -> Result<DeleteOutcome, ClientError> {
        let permit = admit(&self.inner.writers, self.inner.options.admit_wait).await?;
        let mut drive = Drive::start(self.inner.clone(), delete, permit);
        drive.until_answered().await;
        let outcome = drive.machine().and_then(Delete::outcome).cloned();
        let deleted = outcome.unwrap_or(Err(ObjectError::Aborted))?;
        Ok(DeleteOutcome {
            version: deleted.version,
            existed: deleted.existed,
        })
    }

    /// One page of a bucket's keys, in order, across its partitions.
    pub async fn list(&self, bucket: &str, options: ListOptions) -> Result<ListPage, ClientError> {
        check(bucket, None)?;
        let after = options.after.clone();
        list::list(&self.inner, bucket, &options, after).await
    }

    /// Makes a bucket; gives the number of the entry that made it.
    pub async fn create_bucket(&self, bucket: &str) -> Result<Seq, ClientError> {
        check(bucket, None)?;
        list::create_bucket(&self.inner, bucket).await
    }

    /// Removes an empty bucket.
    pub async fn delete_bucket(&self, bucket: &str) -> Result<(), ClientError> {
        check(bucket, None)?;
        list::delete_bucket(&self.inner, bucket).await.map(|_| ())
    }

    /// All buckets, in order.
    pub async fn buckets(&self) -> Result<Vec<BucketMeta>, ClientError> {
        list::buckets(&self.inner).await
    }

    /// How a node is doing: one answer per core, in the map's order.
    pub async fn node_status(&self, node: NodeId) -> Result<Vec<NodeStatus>, ClientError> {
        nodes::status(&self.inner, node).await
    }

    /// How fast a node's devices may be read for audits and repairs. An older node refuses to say.
    pub async fn paces(&self, node: NodeId) -> Result<Vec<DevicePace>, ClientError> {
        nodes::paces(&self.inner, node).await
    }

    /// Asks all nodes of the map something, at the same time, and says what came of each.
    pub async fn each_node<T, F>(
        &self,
        question: impl Fn(Client, NodeId) -> F,
    ) -> BTreeMap<NodeId, Result<T, ClientError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ClientError>> + Send + 'static,
    {
        nodes::each(self, question).await
    }

    /// The chain of a partition, as its head in office sees it; `first` is asked first.
    pub async fn chain_of(
        &self,
        partition: PartitionId,
        first: Option<DeviceNo>,
    ) -> Result<ChainView, ClientError> {
        replicas::chain_of(&self.inner, partition, first).await
    }

    /// The digest of at most `entries` entries of a replica's index, behind `after` (empty: from the beginning), as the
    /// index was behind entry `at` of the journal; and the last entry that the replica has applied. There is none if
    /// the replica is not so far, or is past it and has not kept that state.
    pub async fn replica_digest(
        &self,
        (partition, device): (PartitionId, DeviceNo),
        at: Seq,
        after: Vec<u8>,
        entries: u32,
    ) -> Result<(Seq, Option<Digest>), ClientError> {
        replicas::digest(&self.inner, (partition, device), at, after, entries).await
    }

    /// Waits, at most so long, for what is being finished behind acknowledgements: late shards, and
    /// shards to be freed. A program that ends before that leaves them to the auditor.
    pub async fn drain(&self, wait: Duration) -> Drained {
        self.inner.drain(wait).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_too_long_is_told_so() {
        let permits = Arc::new(Semaphore::new(1));
        let first = admit(&permits, None).await.unwrap();
        assert!(first.is_some());
        let wait = Duration::from_millis(20);
        let refused = admit(&permits, Some(wait)).await.unwrap_err();
        assert_eq!(refused.code(), ashlar_cluster_object::Code::Busy);
        assert!(!refused.is_uncertain());
        let long = Some(Duration::from_secs(600));
        let (ended, admitted) = tokio::join!(
            async {
                tokio::time::sleep(wait).await;
                drop(first);
            },
            admit(&permits, long)
        );
        assert_eq!((ended, admitted.unwrap().is_some()), ((), true));
    }
}

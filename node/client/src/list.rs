//! Buckets and lists, across partitions.
//!
//! Invariant: a page is in order and without gap: a partition is only asked once the ones before it
//! have nothing more to give.

use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, Partition};
use ashlar_cluster_object::common::unexpected;
use ashlar_cluster_object::{Ask, Look, ObjectError};
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{
    BucketMeta, ErrorCode, ListPage, ObjectMeta, Reply, Request, VersionPage,
};
use bytes::Bytes;

use crate::client::{Turn, admit};
use crate::drive::Drive;
use crate::error::ClientError;
use crate::inner::Inner;
use crate::options::ListOptions;

/// Asks a partition's head one thing.
async fn ask(
    inner: &Arc<Inner>,
    names: (&str, &str),
    partition: PartitionId,
    request: Request,
) -> Result<Reply, ClientError> {
    let changes = matches!(request, Request::Propose { .. });
    let permits = if changes {
        &inner.writers
    } else {
        &inner.readers
    };
    let permit = admit(permits, inner.options.admit_wait).await?;
    let ask = Ask::new(
        inner.common.clone(),
        0,
        names,
        partition,
        request,
        Bytes::new(),
    );
    let mut drive = Drive::start(inner.clone(), ask, permit);
    drive.until_answered().await;
    match drive.machine().and_then(Ask::outcome).cloned() {
        Some(Ok(told)) => Ok(told.reply),
        Some(Err(untold)) => Err(untold.error.into()),
        None => Err(ObjectError::Aborted.into()),
    }
}

pub(crate) async fn head(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    version: Option<Seq>,
    turn: Turn,
) -> Result<ObjectMeta, ClientError> {
    let permit = turn.reader(inner).await?;
    let look = Look::new(inner.common.clone(), bucket, key, false)?.of_version(version);
    let mut drive = Drive::start(inner.clone(), look, permit);
    drive.until_answered().await;
    let outcome = drive.machine().and_then(Look::outcome).cloned();
    Ok(outcome.unwrap_or(Err(ObjectError::Aborted))?.meta)
}

async fn propose(inner: &Arc<Inner>, bucket: &str, op: Op) -> Result<Seq, ClientError> {
    let partition = inner.common.partition_of(bucket, "")?;
    let request = inner.common.proposal(partition, Precondition::None, op);
    match ask(inner, (bucket, ""), partition, request).await? {
        Reply::Committed { seq, .. } => Ok(seq),
        other => Err(unexpected("Committed", &other).into()),
    }
}

pub(crate) async fn create_bucket(inner: &Arc<Inner>, bucket: &str) -> Result<Seq, ClientError> {
    propose(
        inner,
        bucket,
        Op::CreateBucket {
            bucket: bucket.to_owned(),
        },
    )
    .await
}

pub(crate) async fn delete_bucket(inner: &Arc<Inner>, bucket: &str) -> Result<Seq, ClientError> {
    // The partition that holds the bucket's record answers for itself, and removes nothing as long as others have a
    // part of the bucket; whether they are empty is asked, for they are made one with it only then.
    let options = ListOptions {
        max: 1,
        ..ListOptions::default()
    };
    let start = inner
        .common
        .map()
        .end_of(&(bucket.to_owned(), String::new()))
        .cloned();
    if let Some((_, key)) = start.filter(|(of, key)| of == bucket && !key.is_empty()) {
        let start = (String::new(), None);
        let page: VersionPage = walk(inner, bucket, &options, start, key).await?;
        if !page.versions.is_empty() {
            return Err(ObjectError::BucketNotEmpty {
                bucket: bucket.to_owned(),
            }
            .into());
        }
    }
    propose(
        inner,
        bucket,
        Op::DeleteBucket {
            bucket: bucket.to_owned(),
        },
    )
    .await
}

/// Whether an answer says that the partition is another one by now.
fn is_moved(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Object(ObjectError::Refused {
            code: ErrorCode::Moved,
            ..
        })
    )
}

/// A page of a listing, of whichever kind.
pub(crate) trait Page: Default {
    /// A place in the listing.
    type Place: Clone;

    /// What asks a partition for one.
    fn request(
        partition: PartitionId,
        bucket: &str,
        options: &ListOptions,
        after: Self::Place,
        max: u32,
    ) -> Request;
    /// The one that a reply is.
    fn of(reply: Reply) -> Result<Self, ClientError>;
    /// How much it holds.
    fn held(&self) -> usize;
    /// The place of the last of that.
    fn last(&self) -> Option<Self::Place>;
    /// The place behind which there is more.
    fn next(&mut self) -> &mut Option<Self::Place>;
    /// Takes in what another one holds.
    fn take_in(&mut self, other: Self);
    /// The key of a place.
    fn key(place: &Self::Place) -> &str;
    /// Whether one place comes after another one.
    fn is_behind(one: &Self::Place, other: &Self::Place) -> bool;
}

impl Page for ListPage {
    type Place = String;

    fn request(
        partition: PartitionId,
        bucket: &str,
        options: &ListOptions,
        after: String,
        max: u32,
    ) -> Request {
        Request::List {
            partition,
            bucket: bucket.to_owned(),
            prefix: options.prefix.clone(),
            delimiter: options.delimiter.clone(),
            after,
            max,
        }
    }

    fn of(reply: Reply) -> Result<ListPage, ClientError> {
        match reply {
            Reply::Page(page) => Ok(page),
            other => Err(unexpected("Page", &other).into()),
        }
    }

    fn held(&self) -> usize {
        self.objects.len() + self.prefixes.len()
    }

    fn last(&self) -> Option<String> {
        let object = self.objects.last().map(|object| &object.key);
        object.max(self.prefixes.last()).cloned()
    }

    fn next(&mut self) -> &mut Option<String> {
        &mut self.next
    }

    fn take_in(&mut self, other: ListPage) {
        self.objects.extend(other.objects);
        self.prefixes.extend(other.prefixes);
    }

    fn key(place: &String) -> &str {
        place
    }

    fn is_behind(one: &String, other: &String) -> bool {
        one > other
    }
}

/// The pauses between looks for a newer map, and for how long there are such.
struct Moves {
    pause: Duration,
    until: tokio::time::Instant,
}

impl Moves {
    fn new(inner: &Inner) -> Moves {
        Moves {
            pause: Duration::from_millis(1),
            until: tokio::time::Instant::now() + inner.options.unavailable_wait,
        }
    }

    /// A partition said that it is another one now: waits a little, for the newer map is being fetched. Gives the error
    /// back if that has gone on for too long.
    async fn wait(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !is_moved(&error) || tokio::time::Instant::now() >= self.until {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(Duration::from_millis(50));
        Ok(())
    }
}

/// One page, behind this place.
pub(crate) async fn list<P: Page>(
    inner: &Arc<Inner>,
    bucket: &str,
    options: &ListOptions,
    after: P::Place,
) -> Result<P, ClientError> {
    // No key before the prefix is of interest.
    let first = P::key(&after).max(options.prefix.as_str()).to_owned();
    walk(inner, bucket, options, after, first).await
}

/// One page, from the partition that holds `from` on. Each partition is asked by the map of that moment, and what comes
/// next is what comes behind it in the same map: so nothing is left out, and whoever has another map by then asks
/// again.
async fn walk<P: Page>(
    inner: &Arc<Inner>,
    bucket: &str,
    options: &ListOptions,
    mut after: P::Place,
    mut from: String,
) -> Result<P, ClientError> {
    let max = match options.max {
        0 => LIST_PAGE_MAX,
        max => max.min(LIST_PAGE_MAX),
    };
    let mut whole = P::default();
    let mut moves = Moves::new(inner);
    loop {
        let room = max.saturating_sub(u32::try_from(whole.held()).unwrap_or(u32::MAX));
        if room == 0 {
            *whole.next() = Some(after);
            return Ok(whole);
        }
        let map = inner.common.map();
        let partition = map.partition(bucket, &from);
        let partition = partition.ok_or_else(|| ObjectError::BadRequest {
            detail: format!("map {} has no partition for bucket '{bucket}'", map.epoch),
        })?;
        let request = P::request(partition.id, bucket, options, after.clone(), room);
        let mut page = match ask(inner, (bucket, ""), partition.id, request).await {
            Ok(reply) => P::of(reply)?,
            Err(error) => {
                moves.wait(error).await?;
                continue;
            }
        };
        if inner.common.map().epoch != map.epoch {
            // It may have been answered by a newer map than the one that says what comes next.
            continue;
        }
        let is_empty = page.held() == 0;
        if let Some(last) = page.last() {
            after = last;
        }
        let next = page.next().take();
        whole.take_in(page);
        match next {
            // The head's own mark, if it gives nothing else to go by.
            Some(next) if is_empty && !P::is_behind(&next, &after) => {
                let partition = partition.id;
                let detail = format!("partition {partition} lists nothing, and says there is more");
                return Err(ObjectError::Protocol { detail }.into());
            }
            Some(next) => after = next,
            None => {
                let behind = map.partitions.iter().find(|p| p.start > partition.start);
                match behind.filter(|p| p.start.0 == bucket) {
                    Some(behind) => from.clone_from(&behind.start.1),
                    None => return Ok(whole),
                }
            }
        }
        let key = P::key(&after);
        if key > from.as_str() && map.partition(bucket, key).map(|p| p.id) == Some(partition.id) {
            from = key.to_owned();
        }
    }
}

pub(crate) async fn buckets(inner: &Arc<Inner>) -> Result<Vec<BucketMeta>, ClientError> {
    let mut moves = Moves::new(inner);
    loop {
        let map = inner.common.map();
        match buckets_by(inner, &map).await {
            Ok(_) if inner.common.map().epoch != map.epoch => {}
            Ok(buckets) => return Ok(buckets),
            Err(error) => moves.wait(error).await?,
        }
    }
}

async fn buckets_by(inner: &Arc<Inner>, map: &ClusterMap) -> Result<Vec<BucketMeta>, ClientError> {
    let mut all: Vec<BucketMeta> = Vec::new();
    for Partition { id, start, .. } in &map.partitions {
        let mut after = String::new();
        loop {
            let request = Request::ListBuckets {
                partition: *id,
                after: after.clone(),
                max: LIST_PAGE_MAX,
            };
            let (buckets, more) = match ask(inner, ("", ""), *id, request).await? {
                Reply::Buckets { buckets, more } => (buckets, more),
                other => return Err(unexpected("Buckets", &other).into()),
            };
            let last = buckets.last().map(|b| b.name.clone());
            // One that begins inside of a bucket has that bucket's record as well.
            let own = |b: &BucketMeta| b.name != start.0 || start.1.is_empty();
            all.extend(buckets.into_iter().filter(own));
            match last {
                Some(last) if more && last > after => after = last,
                _ => break,
            }
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

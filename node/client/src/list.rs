//! Buckets and lists, across partitions.
//!
//! Invariant: a page is in order and without gap: a partition is only asked once the ones before it
//! have nothing more to give.

use std::sync::Arc;

use ashlar_cluster_map::ClusterMap;
use ashlar_cluster_object::common::unexpected;
use ashlar_cluster_object::{Ask, Look, ObjectError};
use ashlar_layout::ids::{PartitionId, Seq, Term};
use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{BucketMeta, ListPage, ObjectMeta, Reply, Request};
use bytes::Bytes;

use crate::client::admit;
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
    bucket: &str,
    key: &str,
) -> Result<ObjectMeta, ClientError> {
    let permit = admit(&inner.readers, inner.options.admit_wait).await?;
    let look = Look::new(inner.common.clone(), bucket, key, false)?;
    let mut drive = Drive::start(inner.clone(), look, permit);
    drive.until_answered().await;
    let outcome = drive.machine().and_then(Look::outcome).cloned();
    Ok(outcome.unwrap_or(Err(ObjectError::Aborted))?.meta)
}

async fn propose(inner: &Arc<Inner>, bucket: &str, op: Op) -> Result<Seq, ClientError> {
    let partition = inner.common.partition_of(bucket, "")?;
    let request = Request::Propose {
        partition,
        term: Term(0),
        client: inner.common.client(),
        request: inner.common.next_request(),
        retry: None,
        precondition: Precondition::None,
        op,
    };
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
    // The partition that holds the bucket's record answers for itself; the others are asked.
    for partition in holding(&inner.common.map(), bucket, "").into_iter().skip(1) {
        let options = ListOptions {
            max: 1,
            ..ListOptions::default()
        };
        let page = page(inner, bucket, partition, &options, String::new(), 1).await?;
        if !page.objects.is_empty() || !page.prefixes.is_empty() {
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

/// The partitions that hold keys of `bucket` behind `after`, in order.
fn holding(map: &ClusterMap, bucket: &str, after: &str) -> Vec<PartitionId> {
    let first = map.partition(bucket, after).map(|p| p.id);
    map.partitions
        .iter()
        .skip_while(|p| Some(p.id) != first)
        .take_while(|p| Some(p.id) == first || p.start.0.as_str() <= bucket)
        .map(|p| p.id)
        .collect()
}

async fn page(
    inner: &Arc<Inner>,
    bucket: &str,
    partition: PartitionId,
    options: &ListOptions,
    after: String,
    max: u32,
) -> Result<ListPage, ClientError> {
    let request = Request::List {
        partition,
        bucket: bucket.to_owned(),
        prefix: options.prefix.clone(),
        delimiter: options.delimiter.clone(),
        after,
        max,
    };
    match ask(inner, (bucket, ""), partition, request).await? {
        Reply::Page(page) => Ok(page),
        other => Err(unexpected("Page", &other).into()),
    }
}

pub(crate) async fn list(
    inner: &Arc<Inner>,
    bucket: &str,
    options: &ListOptions,
) -> Result<ListPage, ClientError> {
    let max = match options.max {
        0 => LIST_PAGE_MAX,
        max => max.min(LIST_PAGE_MAX),
    };
    // No key before the prefix is of interest.
    let first = options.after.as_str().max(options.prefix.as_str());
    let partitions = holding(&inner.common.map(), bucket, first);
    let mut whole = ListPage::default();
    let mut after = options.after.clone();
    for partition in &partitions {
        loop {
            let held = whole.objects.len() + whole.prefixes.len();
            let room = max.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX));
            if room == 0 {
                whole.next = Some(after);
                return Ok(whole);
            }
            let page = page(inner, bucket, *partition, options, after.clone(), room).await?;
            let got = page.objects.len() + page.prefixes.len();
            let last = page
                .objects
                .last()
                .map(|o| &o.key)
                .max(page.prefixes.last());
            if let Some(last) = last {
                after = last.clone();
            }
            whole.objects.extend(page.objects);
            whole.prefixes.extend(page.prefixes);
            match page.next {
                // The head's own mark, if it gives nothing else to go by.
                Some(next) if got == 0 && next <= after => {
                    let detail =
                        format!("partition {partition} lists nothing, and says there is more");
                    return Err(ObjectError::Protocol { detail }.into());
                }
                Some(next) => after = next,
                None => break,
            }
        }
    }
    Ok(whole)
}

pub(crate) async fn buckets(inner: &Arc<Inner>) -> Result<Vec<BucketMeta>, ClientError> {
    let map = inner.common.map();
    let mut all: Vec<BucketMeta> = Vec::new();
    for partition in map.partitions.iter().map(|p| p.id) {
        let mut after = String::new();
        loop {
            let request = Request::ListBuckets {
                partition,
                after: after.clone(),
                max: LIST_PAGE_MAX,
            };
            let (buckets, more) = match ask(inner, ("", ""), partition, request).await? {
                Reply::Buckets { buckets, more } => (buckets, more),
                other => return Err(unexpected("Buckets", &other).into()),
            };
            let last = buckets.last().map(|b| b.name.clone());
            all.extend(buckets);
            match last {
                Some(last) if more && last > after => after = last,
                _ => break,
            }
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

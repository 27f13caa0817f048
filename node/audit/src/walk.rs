//! The objects of a partition, a page at a time.

use ashlar_cluster_audit::{Item, Place};
use ashlar_layout::ids::Seq;
use ashlar_layout::message::ListEntry;
use ashlar_node_client::{Client, ClientError, Code, ListOptions, VersionsOptions};

/// What a partition covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first bucket and key in it,
    pub(crate) start: (String, String),
    /// and the first behind it; none: it is the last one.
    pub(crate) end: Option<(String, String)>,
}

impl Range {
    fn has(&self, bucket: &str, key: &str) -> bool {
        let at = (bucket, key);
        let (start, end) = (&self.start, &self.end);
        let before = |(bucket, key): &(String, String)| at < (bucket.as_str(), key.as_str());
        !before(start) && end.as_ref().is_none_or(before)
    }
}

fn item(bucket: &str, entry: &ListEntry) -> Item {
    Item {
        bucket: bucket.to_owned(),
        key: entry.key.clone(),
        slot: entry.tag.map(|tag| tag.slot().0),
        id: entry.id().0,
        version: entry.version.0,
        modified_ms: entry.modified_ms,
        size: entry.size,
    }
}

/// The first bucket that is this one or behind it.
async fn bucket_from(
    client: &Client,
    from: &str,
    or_behind: bool,
) -> Result<Option<String>, ClientError> {
    let all = client.buckets().await?;
    let mut all = all.into_iter().map(|bucket| bucket.name);
    Ok(all.find(|name| match or_behind {
        true => name.as_str() > from,
        false => name.as_str() >= from,
    }))
}

/// Objects of the range behind a place, and behind which place there are more.
pub(crate) async fn page(
    client: &Client,
    range: &Range,
    after: Option<Place>,
) -> Result<(Vec<Item>, Option<Place>), ClientError> {
    let (bucket, start, after) = match after {
        Some(place) => (place.bucket.clone(), None, place),
        None => {
            let (bucket, key) = range.start.clone();
            let Some(first) = bucket_from(client, &bucket, false).await? else {
                return Ok((Vec::new(), None));
            };
            let start = Some(key).filter(|key| first == bucket && !key.is_empty());
            let place = Place {
                bucket: first.clone(),
                ..Place::default()
            };
            (first, start, place)
        }
    };
    // What begins the range is listed by its name: a listing goes on behind one.
    let list = ListOptions {
        prefix: start.clone().unwrap_or_default(),
        after: after.key,
        ..ListOptions::default()
    };
    let after_id = after.id.map(Seq);
    let page = client.list_versions(&bucket, VersionsOptions { list, after_id });
    let page = match page.await {
        Ok(page) => page,
        // It was removed since.
        Err(error) if error.code() == Code::NoSuchBucket => Default::default(),
        Err(error) => return Err(error),
    };
    let mut next = page.next.map(|(key, id)| Place {
        bucket: bucket.clone(),
        key,
        id: id.map(|id| id.0),
    });
    if let Some(start) = &start
        && next.as_ref().is_none_or(|next| next.key != *start)
    {
        next = Some(Place {
            bucket: bucket.clone(),
            key: start.clone(),
            id: None,
        });
    }
    let of_start = |entry: &&ListEntry| start.as_ref().is_none_or(|start| entry.key == *start);
    let entries = page.versions.iter().filter(of_start);
    let entries = entries.filter(|entry| range.has(&bucket, &entry.key));
    let objects = entries.filter(|entry| entry.tag.is_none_or(|tag| !tag.marker));
    let items = objects.map(|entry| item(&bucket, entry)).collect();
    if next.is_none() {
        let behind = bucket_from(client, &bucket, true).await?;
        next = behind.map(|bucket| Place {
            bucket,
            ..Place::default()
        });
    }
    let next = next.filter(|next| {
        // Before a bucket's first key there is nothing of another one.
        let ended = |end: &(String, String)| (&next.bucket, &next.key) >= (&end.0, &end.1);
        !range.end.as_ref().is_some_and(ended)
    });
    Ok((items, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_range_has() {
        let at = |bucket: &str, key: &str| (bucket.to_owned(), key.to_owned());
        let range = Range {
            start: at("b", "m"),
            end: Some(at("d", "a")),
        };
        for (bucket, key, has) in [
            ("b", "l", false),
            ("b", "m", true),
            ("c", "", true),
            ("d", "", true),
            ("d", "a", false),
            ("a", "z", false),
        ] {
            assert_eq!(range.has(bucket, key), has, "{bucket}/{key}");
        }
        let all = Range {
            start: at("", ""),
            end: None,
        };
        assert!(all.has("a", "") && all.has("z", "z"));
    }
}

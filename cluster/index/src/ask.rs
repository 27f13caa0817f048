//! Questions: what they are made of while they wait, and one pass of work on them.
//!
//! Invariants:
//! - a question sees one state: that of its snapshot, whatever is applied, flushed or merged meanwhile;
//! - a page that is damaged or cannot be read makes an error, never an absence;
//! - a question waits for pages or for its next turn, and is in one place only.

use ashlar_layout::ids::Seq;
use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_layout::message::{BucketMeta, ObjectMeta};
use ashlar_layout::page::EntryKind;
use ashlar_layout::root::ObjectValue;
use bytes::Bytes;

use crate::api::{Found, IndexError, Item, Name, Output, Question};
use crate::digest::Digesting;
use crate::key;
use crate::list::{Listing, bad_entry};
use crate::run::Pages;
use crate::versions::VersionListing;
use crate::walk::{Got, Held, Seen, Sources, Step, Walked, walk};

/// What is left of a question.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Objects {
        keys: Vec<Vec<u8>>,
        found: Vec<Option<Option<Found>>>,
    },
    Bucket {
        key: Vec<u8>,
    },
    Empty {
        prefix: Vec<u8>,
        from: Vec<u8>,
        /// What is looked at when nothing begins with that: versions.
        then: Option<Vec<u8>>,
        empty: bool,
    },
    Versions {
        /// Whether there is such a bucket, once that is known.
        bucket: Option<bool>,
        bucket_key: Vec<u8>,
        listing: Box<VersionListing>,
    },
    List {
        /// Whether there is such a bucket, once that is known.
        bucket: Option<bool>,
        bucket_key: Vec<u8>,
        listing: Box<Listing>,
        from: Option<Vec<u8>>,
    },
    Buckets {
        from: Vec<u8>,
        max: usize,
        buckets: Vec<BucketMeta>,
        more: bool,
    },
    Items {
        from: Vec<u8>,
        max_bytes: usize,
        bytes: usize,
        items: Vec<Item>,
        more: bool,
    },
    Digest {
        from: Vec<u8>,
        digesting: Box<Digesting>,
    },
}

/// A question that is being worked on.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) work: Work,
    pub(crate) seq: u64,
    pub(crate) held: Held,
    /// Pages that it waits for.
    pub(crate) waiting: usize,
    /// How many leaves it asks for beside the one that it misses next.
    pub(crate) ahead: usize,
}

/// What a pass came to.
pub(crate) enum Passed {
    Done(Output),
    /// It waits for the pages that were noted.
    Missing,
    /// It goes on at the next turn.
    Tired,
}

impl Work {
    pub(crate) fn new(question: Question) -> Self {
        match question {
            Question::Bucket(name) => Work::Bucket {
                key: key::bucket(&name),
            },
            Question::Empty(name) => {
                let prefix = key::object(&name, "");
                Work::Empty {
                    from: prefix.clone(),
                    prefix,
                    then: Some(key::versions_from(&name, "")),
                    empty: true,
                }
            }
            Question::Named(names) => {
                let of = |Name { bucket, key, id }: &Name| match id {
                    None => key::object(bucket, key),
                    Some(id) => key::version(bucket, key, *id),
                };
                Work::objects(names.iter().map(of).collect())
            }
            Question::Versions(params) => Work::Versions {
                bucket: None,
                bucket_key: key::bucket(&params.list.bucket),
                listing: Box::new(VersionListing::new(params)),
            },
            Question::List(params) => {
                let bucket_key = key::bucket(&params.bucket);
                let (listing, from) = Listing::new(params);
                Work::List {
                    bucket: None,
                    bucket_key,
                    listing: Box::new(listing),
                    from,
                }
            }
            Question::Buckets { after, max } => {
                let mut from = key::bucket(&after);
                key::step_past(&mut from);
                Work::Buckets {
                    from,
                    max: max.min(LIST_PAGE_MAX) as usize,
                    buckets: Vec::new(),
                    more: false,
                }
            }
            Question::Items { after, max_bytes } => {
                let mut from = after;
                if !from.is_empty() {
                    key::step_past(&mut from);
                }
                Work::Items {
                    from,
                    max_bytes,
                    bytes: 0,
                    items: Vec::new(),
                    more: false,
                }
            }
            Question::Digest(stretch) => {
                let (digesting, from) = Digesting::new(stretch);
                Work::Digest {
                    from,
                    digesting: Box::new(digesting),
                }
            }
        }
    }

    pub(crate) fn objects(keys: Vec<Vec<u8>>) -> Self {
        Work::Objects {
            found: vec![None; keys.len()],
            keys,
        }
    }

    /// Goes on as far as the pages in memory allow.
    pub(crate) fn pass(
        &mut self,
        sources: &Sources<'_>,
        pages: &mut Pages<'_>,
        held: &mut Held,
        budget: &mut usize,
    ) -> Result<Passed, IndexError> {
        match self {
            Work::Objects { keys, found } => {
                held.extend_from_slice(pages.held);
                for (key, found) in keys.iter().zip(found.iter_mut()) {
                    if found.is_none() {
                        *found = match sources.get(key, pages, held, |seen| object(key, seen)) {
                            Got::Found(object) => Some(Some(object?)),
                            Got::Absent => Some(None),
                            Got::Missing => None,
                        };
                    }
                }
                check(pages)?;
                Ok(if found.iter().all(Option::is_some) {
                    let found = std::mem::take(found).into_iter().flatten().collect();
                    Passed::Done(Output::Objects(found))
                } else {
                    Passed::Missing
                })
            }
            Work::Bucket { key } => {
                held.extend_from_slice(pages.held);
                let got = sources.get(key, pages, held, |seen| bucket(key, seen));
                check(pages)?;
                Ok(match got {
                    Got::Found(meta) => Passed::Done(Output::Bucket(Some(meta?))),
                    Got::Absent => Passed::Done(Output::Bucket(None)),
                    Got::Missing => Passed::Missing,
                })
            }
            Work::Empty {
                prefix,
                from,
                then,
                empty,
            } => loop {
                let mut visit = |key: &[u8], _: Seen<'_>| {
                    *empty = !key.starts_with(prefix);
                    Ok(Step::Stop)
                };
                let walked = walk(sources, from, pages, held, budget, &mut visit)?;
                let over = matches!(walked, Walked::Finished | Walked::Stopped);
                match then.take_if(|_| over && *empty) {
                    Some(next) => {
                        from.clone_from(&next);
                        *prefix = next;
                    }
                    None => return Ok(passed(walked, || Output::Empty(*empty))),
                }
            },
            Work::Versions {
                bucket,
                bucket_key,
                listing,
            } => {
                let mut probed = Held::new();
                if !probe(bucket, bucket_key, sources, pages, &mut probed)? {
                    return Ok(Passed::Done(Output::Versions(None)));
                }
                let mut walked = Walked::Finished;
                while let Some(mut from) = listing.from().map(std::mem::take) {
                    let mut visit = |key: &[u8], seen: Seen<'_>| listing.visit(key, seen);
                    walked = walk(sources, &mut from, pages, held, budget, &mut visit)?;
                    if !matches!(walked, Walked::Finished | Walked::Stopped) {
                        if let Some(at) = listing.from() {
                            *at = from;
                        }
                        break;
                    }
                    listing.walked();
                }
                if bucket.is_none() {
                    held.extend(probed);
                    return Ok(Passed::Missing);
                }
                Ok(passed(walked, || Output::Versions(Some(listing.page()))))
            }
            Work::List {
                bucket,
                bucket_key,
                listing,
                from,
            } => {
                let mut probed = Held::new();
                if !probe(bucket, bucket_key, sources, pages, &mut probed)? {
                    return Ok(Passed::Done(Output::List(None)));
                }
                let walked = match from {
                    None => Walked::Finished,
                    Some(at) => {
                        let mut visit = |key: &[u8], seen: Seen<'_>| listing.visit(key, seen);
                        walk(sources, at, pages, held, budget, &mut visit)?
                    }
                };
                if matches!(walked, Walked::Finished | Walked::Stopped) {
                    *from = None;
                }
                if bucket.is_none() {
                    held.extend(probed);
                    return Ok(Passed::Missing);
                }
                Ok(passed(walked, || {
                    Output::List(Some(std::mem::take(&mut listing.page)))
                }))
            }
            Work::Buckets {
                from,
                max,
                buckets,
                more,
            } => {
                let mut visit = |key: &[u8], seen: Seen<'_>| {
                    if key::bucket_name(key).is_none() {
                        return Ok(Step::Stop);
                    }
                    if buckets.len() == *max {
                        *more = *max > 0;
                        return Ok(Step::Stop);
                    }
                    buckets.push(bucket(key, seen)?);
                    Ok(Step::Next)
                };
                let walked = walk(sources, from, pages, held, budget, &mut visit)?;
                Ok(passed(walked, || Output::Buckets {
                    buckets: std::mem::take(buckets),
                    more: *more,
                }))
            }
            Work::Items {
                from,
                max_bytes,
                bytes,
                items,
                more,
            } => {
                let mut visit = |key: &[u8], seen: Seen<'_>| {
                    let len = key.len() + seen.value.len();
                    if !items.is_empty() && *bytes + len > *max_bytes {
                        *more = true;
                        return Ok(Step::Stop);
                    }
                    *bytes += len;
                    items.push(Item {
                        key: key.to_vec(),
                        version: Seq(seen.seq),
                        kind: seen.kind,
                        value: Bytes::copy_from_slice(seen.value),
                    });
                    Ok(Step::Next)
                };
                let walked = walk(sources, from, pages, held, budget, &mut visit)?;
                Ok(passed(walked, || Output::Items {
                    items: std::mem::take(items),
                    more: *more,
                }))
            }
            Work::Digest { from, digesting } => {
                digesting.begin_turn();
                let mut visit = |key: &[u8], seen: Seen<'_>| digesting.visit(key, seen);
                let walked = walk(sources, from, pages, held, budget, &mut visit)?;
                Ok(passed(walked, || Output::Digest(digesting.finish())))
            }
        }
    }
}

/// Finds out whether there is a bucket; false if it is known that there is none.
fn probe(
    bucket: &mut Option<bool>,
    bucket_key: &[u8],
    sources: &Sources<'_>,
    pages: &mut Pages<'_>,
    probed: &mut Held,
) -> Result<bool, IndexError> {
    if bucket.is_none() {
        probed.extend_from_slice(pages.held);
        *bucket = match sources.get(bucket_key, pages, probed, |_| ()) {
            Got::Found(()) => Some(true),
            Got::Absent => Some(false),
            Got::Missing => None,
        };
        check(pages)?;
    }
    Ok(*bucket != Some(false))
}

fn passed(walked: Walked, done: impl FnOnce() -> Output) -> Passed {
    match walked {
        Walked::Finished | Walked::Stopped => Passed::Done(done()),
        Walked::Missing => Passed::Missing,
        Walked::Tired => Passed::Tired,
    }
}

fn check(pages: &mut Pages<'_>) -> Result<(), IndexError> {
    pages.error.take().map_or(Ok(()), Err)
}

fn object(key: &[u8], seen: Seen<'_>) -> Result<Found, IndexError> {
    if seen.kind != EntryKind::Object {
        return Err(bad_entry(key, "it is of another kind than an object"));
    }
    let value = ObjectValue::decode(seen.value).map_err(|e| bad_entry(key, &e.to_string()))?;
    Ok(Found {
        meta: ObjectMeta {
            version: Seq(seen.seq),
            modified_ms: value.modified_ms,
            manifest: value.manifest,
            tag: value.tag,
        },
        place: value.place,
        payload: value.payload.into(),
    })
}

fn bucket(key: &[u8], seen: Seen<'_>) -> Result<BucketMeta, IndexError> {
    let created = <[u8; 8]>::try_from(seen.value).ok();
    match (key::bucket_name(key), created, seen.kind) {
        (Some(name), Some(created), EntryKind::Bucket) => Ok(BucketMeta {
            name: name.to_owned(),
            created_ms: u64::from_le_bytes(created),
        }),
        _ => Err(bad_entry(key, "it is no bucket")),
    }
}

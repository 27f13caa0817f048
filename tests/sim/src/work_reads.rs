//! Gets and listings, and what they bring.

use ashlar_cluster_map::Partition;
use ashlar_cluster_object::ask::Ask;
use ashlar_cluster_object::{ByteRange, Code, Get};
use ashlar_layout::ids::Epoch;
use ashlar_layout::message::{ObjectMeta, Reply, Request};
use ashlar_tests::history::{Condition, Key, Kind, Outcome, Value};
use bytes::{Bytes, BytesMut};

use crate::client::{Client, Running};
use crate::plan::Plan;
use crate::story::{BUCKET, Story, key_name, value_of};
use crate::work::{Doing, LastStep, Work};

/// A listing of the bucket, page by page.
pub(crate) struct Listing {
    pub(crate) after: String,
    /// The partition that was asked, by this map.
    pub(crate) partition: Partition,
    pub(crate) epoch: Epoch,
    pub(crate) tries: u32,
}

impl Work {
    pub(crate) fn get(
        &mut self,
        now: u64,
        client: &mut Client,
        key: Key,
        range: Option<ByteRange>,
    ) {
        let get = Get::new(client.common.clone(), BUCKET, &key_name(key), range);
        let came = BytesMut::new();
        self.start(
            now,
            client,
            get.map(Running::Get),
            Doing::Get { key, range, came },
        );
    }

    /// Asks the partition that holds `from` for what comes behind `after`.
    pub(crate) fn list(
        &mut self,
        now: u64,
        client: &mut Client,
        (after, from): (String, String),
        tries: u32,
    ) {
        let map = client.common.map();
        let partition = map.partition(BUCKET, &from).cloned();
        let partition = partition.expect("partitions cover everything");
        let request = Request::List {
            partition: partition.id,
            bucket: BUCKET.to_owned(),
            prefix: String::new(),
            delimiter: String::new(),
            after: after.clone(),
            max: 3,
        };
        let names = (BUCKET, "");
        let ask = Ask::new(
            client.common.clone(),
            0,
            names,
            partition.id,
            request,
            Bytes::new(),
        );
        let listing = Listing {
            after,
            partition,
            epoch: map.epoch,
            tries,
        };
        self.start(now, client, Ok(Running::Ask(ask)), Doing::List(listing));
    }

    pub(crate) fn got(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        (key, range, mut came): (Key, Option<ByteRange>, BytesMut),
    ) {
        let taken = client.with(now, self.op, |running, at, out| match running {
            Running::Get(get) => get.take(at, out),
            _ => None,
        });
        let said = match taken.flatten() {
            Some(Ok(bytes)) => {
                came.extend_from_slice(&bytes);
                self.doing = Doing::Get { key, range, came };
                return;
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        let Some(Running::Get(get)) = client.running.get(&self.op) else {
            return self.rest(now, client, plan);
        };
        if get.rebuilt() > 0 {
            story.mark("shards rebuilt while reading");
        }
        if get.from_cache() {
            story.mark("read as witnesses allow");
        }
        match said {
            Ok(()) => {
                let Some(meta) = get.meta().cloned() else {
                    story.wrong(
                        now,
                        format!("key {key}: it was read and nothing is known of it"),
                    );
                    return self.rest(now, client, plan);
                };
                let value = self.check(now, story, key, &meta, &get.range(), &came);
                self.seen.insert(key, (value, meta.version));
                self.record(
                    now,
                    story,
                    key,
                    (Kind::Get, Condition::None),
                    (Outcome::Found(value), meta.version.0),
                );
                story.mark("read");
                self.step_done(LastStep::Get(key));
            }
            Err(error) if error.code() == Code::NotFound => {
                self.seen.remove(&key);
                self.record(
                    now,
                    story,
                    key,
                    (Kind::Get, Condition::None),
                    (Outcome::Absent, 0),
                );
                story.mark("read that there is nothing");
                self.step_done(LastStep::Get(key));
            }
            Err(error) if matches!(error.code(), Code::Corrupt) => {
                story.lost(now, format!("key {key}: it cannot be read: {error}"));
                self.step_done(LastStep::Get(key));
            }
            Err(error) if error.code() == Code::RangeNotSatisfiable => {
                story.mark("range not satisfiable");
            }
            Err(error) => {
                self.why = error.to_string();
                story.mark("read failed");
            }
        }
        self.rest(now, client, plan);
    }

    /// Whether the bytes are those of the value that the object says it is.
    pub(crate) fn check(
        &self,
        now: u64,
        story: &mut Story,
        key: Key,
        meta: &ObjectMeta,
        range: &std::ops::Range<u64>,
        came: &[u8],
    ) -> Value {
        let value = value_of(&meta.manifest.etag);
        let all = story.content(value);
        let attributes = meta.manifest.attributes.starts_with(&value.to_le_bytes());
        let (Some(all), true) = (all, attributes) else {
            story.wrong(
                now,
                format!("key {key}: it is a value that nobody put: {value:x}"),
            );
            return value;
        };
        let size = all.len();
        let whole = all.get(range.start as usize..range.end as usize);
        if whole != Some(came) || meta.manifest.size != size as u64 {
            story.wrong(now, format!(
                "key {key}: {} bytes came of {range:?} of value {value:x} of {size} bytes, and they are others",
                came.len()
            ));
        }
        value
    }

    pub(crate) fn listed(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        listing: Listing,
    ) {
        let outcome = match client.running.get(&self.op) {
            Some(Running::Ask(ask)) => ask.outcome().cloned(),
            _ => None,
        };
        match outcome {
            Some(Ok(told)) => {
                let Reply::Page(page) = told.reply else {
                    story.wrong(now, format!("a list was answered with {:?}", told.reply));
                    return self.rest(now, client, plan);
                };
                let map = client.common.map();
                let start = listing.partition.start.clone();
                if map.epoch != listing.epoch {
                    // It may have been answered by a newer map than the one that says what it covers.
                    story.mark("list by a map that changed");
                    let from = if start.0 == BUCKET {
                        start.1
                    } else {
                        String::new()
                    };
                    let from = from.max(listing.after.clone());
                    return self.list(now, client, (listing.after, from), listing.tries + 1);
                }
                let end = map.end_of(&start).cloned();
                // Between them the page says of every key what it is, or that it is not there.
                let inside = |name: &str| {
                    let place = (BUCKET.to_owned(), name.to_owned());
                    let behind = place >= start && name > listing.after.as_str();
                    let before = match &page.next {
                        Some(next) => name <= next.as_str(),
                        None => end.as_ref().is_none_or(|end| place < *end),
                    };
                    behind && before
                };
                for key in 0..plan.keys {
                    let name = key_name(key);
                    if !inside(&name) {
                        continue;
                    }
                    let entry = page.objects.iter().find(|entry| entry.key == name);
                    let outcome = entry.map_or(Outcome::Absent, |entry| {
                        Outcome::Found(value_of(&entry.etag))
                    });
                    let version = entry.map_or(0, |entry| entry.version.0);
                    self.record(
                        now,
                        story,
                        key,
                        (Kind::Get, Condition::None),
                        (outcome, version),
                    );
                    if let Some(entry) = entry
                        && story.size(value_of(&entry.etag)).map(|it| it as u64) != Some(entry.size)
                    {
                        story.wrong(
                            now,
                            format!("key {key}: it is listed as what nobody put: {entry:?}"),
                        );
                    }
                }
                story.mark("page listed");
                match (page.next, end) {
                    (Some(next), _) => return self.list(now, client, (next.clone(), next), 0),
                    (None, Some((bucket, key))) if bucket == BUCKET => {
                        story.mark("list across partitions");
                        return self.list(now, client, (listing.after, key), 0);
                    }
                    _ => {}
                }
                self.step_done(LastStep::List);
            }
            Some(Err(untold)) if listing.tries < 8 => {
                self.why = untold.error.to_string();
                let tries = listing.tries + 1;
                story.mark("list again");
                let start = listing.partition.start;
                let from = if start.0 == BUCKET {
                    start.1
                } else {
                    String::new()
                };
                let from = from.max(listing.after.clone());
                return self.list(now, client, (listing.after, from), tries);
            }
            _ => story.mark("list failed"),
        }
        self.rest(now, client, plan);
    }
}

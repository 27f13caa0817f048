//! Versions of objects, as clients keep them and remove them.
//!
//! This is `node/client/src/versions.rs`, and what the gateway makes of it, with the same operations in the same order,
//! and without what only counts or waits: a change there is to be made here. Each change, and what comes of it, is a
//! deed of the story.

use ashlar_cluster_object::{Code, Compose, Delete, Get, Look, Making, ObjectError, Put};
use ashlar_layout::ids::Seq;
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{Body, Manifest, NULL_VERSION, Precondition, Then, VersionTag};
use ashlar_layout::message::{ListEntry, ObjectMeta, Reply, Request, VersionPage};
use ashlar_tests::history::{Key, Value};
use ashlar_tests::shelf::{self, Id, Need, Said, Slot, Tag, View, What};
use bytes::Bytes;

use crate::client::Running;
use crate::desk::{Desk, Ended, Got, Not, Read};
use crate::story::{BUCKET, etag, key_name, value_of};

/// So often something is tried again that others got in the way of.
pub(crate) const TRIES: usize = 16;
/// Versions of one page, where a listing is to have more than one.
const PAGE: u32 = 3;

/// What is remembered of an object besides its value.
pub(crate) fn attributes(value: Value, tags: u64) -> Vec<u8> {
    [value.to_le_bytes(), tags.to_le_bytes()].concat()
}

pub(crate) fn tags_of(manifest: &Manifest) -> u64 {
    let tags = manifest.attributes.get(8..16);
    let tags = tags.and_then(|it| it.try_into().ok());
    tags.map_or(0, u64::from_le_bytes)
}

/// How deeds name a place among versions.
pub(crate) fn slot_of(id: Seq) -> Slot {
    match id {
        NULL_VERSION => Slot::Null,
        id => Slot::Own(id.0),
    }
}

/// And how the store does.
pub(crate) fn seq_of(slot: Slot) -> Seq {
    match slot {
        Slot::Null => NULL_VERSION,
        Slot::Own(id) => Seq(id),
    }
}

fn tag_of(tag: Option<VersionTag>) -> (Tag, bool, Lock) {
    match tag {
        None => (Tag::Plain, false, Lock::NONE),
        Some(tag) if tag.null => (Tag::Null, tag.marker, tag.lock),
        Some(tag) => (Tag::Own, tag.marker, tag.lock),
    }
}

/// What was found, as deeds have it.
pub(crate) fn view(meta: &ObjectMeta) -> View {
    let (tag, marker, lock) = tag_of(meta.tag);
    View {
        id: meta.id().0,
        entry: meta.version.0,
        tag,
        value: (!marker).then(|| value_of(&meta.manifest.etag)),
        tags: Some(if marker { 0 } else { tags_of(&meta.manifest) }),
        lock,
    }
}

fn listed(entry: &ListEntry) -> View {
    let (tag, marker, lock) = tag_of(entry.tag);
    View {
        id: entry.id().0,
        entry: entry.version.0,
        tag,
        value: (!marker).then(|| value_of(&entry.etag)),
        tags: None,
        lock,
    }
}

/// Which version an object is that has no tag.
pub(crate) fn named(meta: &ObjectMeta) -> VersionTag {
    meta.tag.unwrap_or(VersionTag::of_plain(meta.version))
}

pub(crate) fn need_of(precondition: Precondition) -> Need {
    match precondition {
        Precondition::None => Need::None,
        Precondition::Absent => Need::Absent,
        Precondition::Present => Need::Present,
        Precondition::Version(entry) => Need::Entry(entry.0),
    }
}

/// How deeds say that an object is put.
pub(crate) fn made_as(making: Making) -> shelf::Making {
    match making {
        Making::Version { null, lock } => shelf::Making::Version { null, lock },
        _ => shelf::Making::Plain,
    }
}

/// What is to be put.
#[derive(Clone)]
pub(crate) enum Whole {
    /// These bytes,
    Bytes(Bytes),
    /// or those of these objects.
    Parts(Vec<Manifest>),
}

pub(crate) fn ended(not: Not) -> Ended {
    let Not::Because(_) = not else { return Ended };
    Ended
}

impl Desk {
    /// What is current, or stands somewhere; a marker included.
    pub(crate) async fn find(
        &self,
        key: Key,
        slot: Option<Seq>,
    ) -> Result<Option<ObjectMeta>, Ended> {
        let look = Look::new(self.common.clone(), BUCKET, &key_name(key), false);
        let look = look.expect("a key has a partition").of_version(slot);
        let (since, what) = (self.now(), What::Look(slot.map(slot_of)));
        let Got::Look(found) = self.run(look.into(), None).await else {
            return Err(Ended);
        };
        let meta = match found {
            Ok(found) => Some(found.meta),
            Err(ObjectError::Marker { meta, .. }) => Some(*meta),
            Err(error) if error.code() == Code::NotFound => None,
            Err(error) => return Err(self.failed(key, &error)),
        };
        let said = meta
            .as_ref()
            .map_or(Said::Nothing, |meta| Said::Found(view(meta)));
        self.looked(since, key, what, said);
        Ok(meta)
    }

    /// All bytes of what is current, or stands somewhere.
    pub(crate) async fn get(
        &self,
        key: Key,
        slot: Option<Seq>,
    ) -> Result<Option<(ObjectMeta, Bytes)>, Ended> {
        let get = Get::new(self.common.clone(), BUCKET, &key_name(key), None);
        let get = get.expect("a key has a partition").of_version(slot);
        let (since, what) = (self.now(), What::Look(slot.map(slot_of)));
        let Got::Get(got) = self.run(get.into(), None).await else {
            return Err(Ended);
        };
        let (said, got) = match got {
            Ok((meta, bytes)) => (Said::Found(view(&meta)), Some((meta, bytes))),
            Err(ObjectError::Marker { meta, .. }) => (Said::Found(view(&meta)), None),
            Err(error) if error.code() == Code::NotFound => (Said::Nothing, None),
            Err(error) => {
                self.mark("read of a version failed");
                return Err(self.failed(key, &error));
            }
        };
        self.looked(since, key, what, said);
        if let Some((meta, bytes)) = &got {
            self.read(Read {
                key,
                meta: meta.clone(),
                bytes: bytes.clone(),
            });
        }
        Ok(got)
    }

    /// All bytes of what was found, if it rides in the journal; none if it is another one by now.
    pub(crate) async fn inline_of(
        &self,
        key: Key,
        slot: Option<Seq>,
        meta: &ObjectMeta,
    ) -> Result<Option<Bytes>, Ended> {
        let got = self.get(key, slot).await?;
        let same = got.filter(|(now, _)| now.version == meta.version);
        Ok(same.map(|(_, bytes)| bytes))
    }

    /// Makes what is current a version, if it is none, so that a new one can come; gives what has to hold for that one
    /// then.
    pub(crate) async fn make_way(
        &self,
        key: Key,
        precondition: Precondition,
    ) -> Result<Precondition, Ended> {
        let Some(meta) = self.find(key, None).await? else {
            return Ok(precondition);
        };
        if meta.tag.is_some() {
            return Ok(precondition);
        }
        match self.keep(key, &meta).await {
            Ok(kept) if precondition == Precondition::Version(meta.version) => {
                Ok(Precondition::Version(Seq(kept)))
            }
            Ok(_) => Ok(precondition),
            Err(not) if matches!(not.code(), Code::PreconditionFailed | Code::NotFound) => {
                Ok(precondition)
            }
            Err(not) => Err(ended(not)),
        }
    }

    /// Puts an object, or puts it together of parts.
    pub(crate) async fn put(
        &self,
        (key, value): (Key, Value),
        mut precondition: Precondition,
        making: Making,
        whole: Whole,
    ) -> Result<Id, Not> {
        let name = key_name(key);
        let seal = (etag(value), attributes(value, 0));
        let made = made_as(making);
        let deed = |precondition| {
            let what = What::Put {
                value,
                making: made,
            };
            (key, what, need_of(precondition))
        };
        let parts = match whole {
            Whole::Parts(parts) => parts,
            Whole::Bytes(body) => {
                let put = Put::new(self.common.clone(), BUCKET, &name, precondition);
                let put = put.map(|put| {
                    let mut put = put.as_version(self.really(making));
                    put.describe(seal.0, seal.1);
                    Running::from(put)
                });
                let mut done = self
                    .change(deed(precondition), put, Some(body.into()))
                    .await;
                let mut tries = TRIES;
                while let Err(Not::Kept(op, of)) = done {
                    tries -= 1;
                    let next = match tries {
                        0 => Err(Ended),
                        _ => self.make_way(key, of).await,
                    };
                    let Ok(next) = next else {
                        // Whoever drops it has what it stored freed.
                        self.give_up(op).await;
                        return Err(Not::Because(ObjectError::Aborted));
                    };
                    done = self.change_again(deed(next), (op, next)).await;
                    if done.is_ok() {
                        self.mark("put behind what was made a version");
                    }
                }
                return done;
            }
        };
        let mut tries = TRIES;
        loop {
            let (common, parts) = (self.common.clone(), parts.clone());
            let compose = Compose::new(common, BUCKET, &name, precondition, parts, seal.clone());
            let compose = compose.map(|it| it.as_version(self.really(making)).into());
            let done = self.change(deed(precondition), compose, None).await;
            tries -= 1;
            match done {
                Err(not) if not.code() == Code::NotKept && tries > 0 => {}
                done => return done,
            }
            let next = self.make_way(key, precondition).await;
            precondition = next.map_err(|_| Not::Because(ObjectError::Aborted))?;
        }
    }

    /// Takes what is current away: by a marker, or if the bucket keeps no versions, for good.
    pub(crate) async fn take_away(
        &self,
        key: Key,
        mut precondition: Precondition,
        null: Option<bool>,
    ) -> Result<Id, Not> {
        let name = key_name(key);
        let Some(null) = null else {
            let delete = Delete::new(self.common.clone(), BUCKET, &name, precondition);
            let deed = (key, What::Remove, need_of(precondition));
            return self.change(deed, delete.map(Running::from), None).await;
        };
        let mut tries = TRIES;
        loop {
            let mark = self.marker(&name, precondition, null);
            let deed = (key, What::Mark { null }, need_of(precondition));
            let marked = self.change(deed, mark.map(Running::from), None).await;
            tries -= 1;
            match marked {
                Err(not) if not.code() == Code::NotKept && tries > 0 => {}
                marked => {
                    if marked.is_ok() {
                        self.mark("marked as deleted");
                    }
                    return marked;
                }
            }
            let next = self.make_way(key, precondition).await;
            precondition = next.map_err(|_| Not::Because(ObjectError::Aborted))?;
        }
    }

    /// One page of versions; and takes note of what it says of `about`, if that stands in it.
    pub(crate) async fn versions(
        &self,
        (prefix, from): (&str, &str),
        (after, after_id): (&str, Option<Seq>),
        max: u32,
        about: &[Key],
    ) -> Result<(VersionPage, Option<String>), Ended> {
        for _ in 0..TRIES {
            let map = self.common.map();
            let partition = map.partition(BUCKET, from).cloned();
            let partition = partition.expect("partitions cover everything");
            let request = Request::ListVersions {
                partition: partition.id,
                bucket: BUCKET.to_owned(),
                prefix: prefix.to_owned(),
                delimiter: String::new(),
                after: after.to_owned(),
                after_id,
                max,
            };
            let names = (BUCKET, "");
            let common = self.common.clone();
            let ask = crate::desk::ask(common, names, partition.id, request);
            let since = self.now();
            let Got::Ask(told) = self.run(ask.into(), None).await else {
                return Err(Ended);
            };
            let page = match told {
                Ok(told) => match told.reply {
                    Reply::Versions(page) => page,
                    other => {
                        self.wrong(format!("a list of versions was answered with {other:?}"));
                        return Err(Ended);
                    }
                },
                Err(untold) => {
                    self.failed(0, &untold.error);
                    self.mark("versions listed again");
                    continue;
                }
            };
            // It may have been answered by a newer map than the one that says what it covers.
            if self.common.map().epoch != map.epoch {
                self.mark("versions listed by a map that changed");
                continue;
            }
            let end = map.end_of(&partition.start).cloned();
            for key in about {
                let name = key_name(*key);
                let place = (BUCKET.to_owned(), name.clone());
                let inside =
                    place >= partition.start && end.as_ref().is_none_or(|end| place < *end);
                let below = after_id.filter(|_| name == after);
                let begins = name.as_str() > after || below.is_some();
                let last = page.next.as_ref().map(|(next, _)| next.as_str());
                if !inside || !begins || last.is_some_and(|last| name.as_str() > last) {
                    continue;
                }
                let of_key = page.versions.iter().filter(|it| it.key == name);
                let what = What::List {
                    below: below.map(|id| id.0),
                    bottom: last.is_none_or(|last| name.as_str() < last),
                };
                let said = Said::Page(of_key.map(listed).collect());
                self.looked(since, *key, what, said);
            }
            let next = end
                .filter(|(bucket, _)| bucket == BUCKET)
                .map(|(_, key)| key);
            return Ok((page, next));
        }
        Err(Ended)
    }

    /// All versions of a key, in one page.
    pub(crate) async fn all_versions(&self, key: Key) -> Result<Vec<ListEntry>, Ended> {
        let name = key_name(key);
        let (page, _) = self
            .versions((&name, &name), ("", None), 1000, &[key])
            .await?;
        self.mark("versions of a key listed");
        Ok(page.versions)
    }

    /// All versions of the bucket, in small pages, partition by partition.
    pub(crate) async fn walk(&self, about: &[Key]) -> Result<(), Ended> {
        let (mut from, mut after, mut after_id) = (String::new(), String::new(), None);
        loop {
            let at = (after.as_str(), after_id);
            let (page, behind) = self.versions(("", &from), at, PAGE, about).await?;
            match (page.next, behind) {
                (Some((key, id)), _) => {
                    if id.is_some() {
                        self.mark("versions listed page by page");
                    }
                    from.clone_from(&key);
                    (after, after_id) = (key, id);
                }
                (None, Some(next)) => {
                    self.mark("versions listed across partitions");
                    // Nothing more of the key where the last page ended is in there.
                    if next > after {
                        after_id = None;
                    }
                    from = next;
                }
                (None, None) => return Ok(()),
            }
        }
    }

    /// The newest version that is older than this one, in this place; none if it has to be looked for again.
    async fn before(
        &self,
        key: Key,
        (slot, id): (Seq, Seq),
    ) -> Result<Option<(Then, Bytes)>, Ended> {
        let name = key_name(key);
        let behind = (name.as_str(), Some(id));
        let (page, _) = self.versions((&name, &name), behind, 1, &[key]).await?;
        let next = page.versions.into_iter().find(|it| it.key == name);
        let Some(tag) = next.and_then(|it| it.tag) else {
            return Ok(Some((Then::Nothing, Bytes::new())));
        };
        let Some(meta) = self.find(key, Some(tag.slot())).await? else {
            return Ok(None);
        };
        if meta.tag.is_none() || tag.slot() == slot {
            return Ok(None);
        }
        let mut payload = Bytes::new();
        if meta.manifest.body == Body::Inline && meta.manifest.size > 0 {
            match self.inline_of(key, Some(tag.slot()), &meta).await? {
                Some(bytes) => payload = bytes,
                None => return Ok(None),
            }
        }
        let then = Then::Version {
            tag: named(&meta),
            seen: meta.version,
            modified_ms: meta.modified_ms,
            manifest: meta.manifest,
        };
        Ok(Some((then, payload)))
    }

    /// Removes a version. `seen`: only the one that this entry wrote. Whether it was there.
    pub(crate) async fn drop_version(
        &self,
        key: Key,
        slot: Seq,
        seen: Option<Seq>,
        bypass: bool,
    ) -> Result<bool, Ended> {
        for _ in 0..TRIES {
            let now = self.find(key, None).await?;
            let entry = now.as_ref().map(|meta| meta.version);
            let now = now.filter(|meta| match meta.tag {
                Some(tag) => tag.slot() == slot,
                None => slot == NULL_VERSION,
            });
            let is_other = |meta: &ObjectMeta| seen.is_some_and(|seen| seen != meta.version);
            let (id, precondition, then, payload) = match now {
                Some(meta) if is_other(&meta) => return Err(Ended),
                Some(meta) => {
                    let id = named(&meta).id;
                    let Some((then, payload)) = self.before(key, (slot, id)).await? else {
                        self.mark("two are the null version");
                        self.make_way(key, Precondition::None).await?;
                        continue;
                    };
                    (id, Precondition::Version(meta.version), then, payload)
                }
                None => match self.find(key, Some(slot)).await? {
                    None => return Ok(false),
                    Some(meta) if is_other(&meta) => return Err(Ended),
                    Some(meta) => {
                        let precondition = match (seen, entry) {
                            (None, _) => Precondition::None,
                            (Some(_), Some(entry)) => Precondition::Version(entry),
                            (Some(_), None) => Precondition::Absent,
                        };
                        (named(&meta).id, precondition, Then::Same, Bytes::new())
                    }
                },
            };
            let drops = self.drop_once((key, slot, id), precondition, (then, bypass), payload);
            match drops.await {
                Ok(_) => return Ok(true),
                Err(not) => match not.code() {
                    Code::NotFound => return Ok(false),
                    Code::PreconditionFailed => {}
                    Code::NotKept => {
                        self.make_way(key, Precondition::None).await?;
                    }
                    _ => return Err(ended(not)),
                },
            }
        }
        Err(Ended)
    }

    /// Removes the oldest version, if it is not the current one, or a marker that is the only one: as lifecycles do.
    pub(crate) async fn end_oldest(&self, key: Key) -> Result<(), Ended> {
        let all = self.all_versions(key).await?;
        let (Some(current), Some(oldest)) = (self.find(key, None).await?, all.last()) else {
            return Ok(());
        };
        let Some(tag) = oldest.tag else {
            return Ok(());
        };
        let (then, mark) = match current.id() == tag.id {
            true if all.len() == 1 && tag.marker => (Then::Nothing, "last marker ended"),
            true => return Ok(()),
            false => (Then::Same, "oldest version ended"),
        };
        let only = Precondition::Version(current.version);
        let what = (key, tag.slot(), tag.id);
        let ended = self.drop_once(what, only, (then, false), Bytes::new());
        if ended.await.is_ok() {
            self.mark(mark);
        }
        Ok(())
    }

    async fn drop_once(
        &self,
        (key, slot, id): (Key, Seq, Seq),
        precondition: Precondition,
        (then, bypass): (Then, bool),
        payload: Bytes,
    ) -> Result<Id, Not> {
        let (then_is, mark) = match &then {
            Then::Same => (shelf::Then::Same, "older version removed"),
            Then::Nothing => (shelf::Then::Nothing, "last version removed"),
            Then::Version { tag, seen, .. } => (
                shelf::Then::Version(slot_of(tag.slot()), seen.0),
                "current version removed",
            ),
        };
        let what = What::Drop {
            slot: slot_of(slot),
            id: id.0,
            then: then_is,
            bypass,
        };
        let names = (BUCKET, key_name(key));
        let names = (names.0, names.1.as_str());
        let how = (slot, then, bypass);
        let drop = Delete::version(self.common.clone(), names, precondition, how, payload);
        let deed = (key, what, need_of(precondition));
        let dropped = self.change(deed, drop.map(Running::from), None).await;
        if dropped.is_ok() {
            self.mark(mark);
        }
        dropped
    }
}

/// What is said if what was found is not there any more.
pub(crate) fn overtaken(key: Key) -> ObjectError {
    ObjectError::PreconditionFailed {
        bucket: BUCKET.to_owned(),
        key: key_name(key),
        detail: "it is another one by now".to_owned(),
    }
}

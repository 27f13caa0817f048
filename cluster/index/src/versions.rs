//! A page of a listing of versions: all that there are of each key, the newest first.
//!
//! Invariants:
//! - the page is of one state, though it is put together of two walks: one over the versions, one over the objects
//!   for those that are no version of their own, because they were put when their bucket kept none;
//! - of one key such an object is newer than all versions, so it comes first; the `null` version comes first in the
//!   map, and in the page where its name has it: it is held back until then;
//! - the second walk goes no further than the first one came, if that has filled the page: what is stepped over
//!   are the current objects of the keys in it;
//! - `next` is the last item of the page and is there only if something follows it.

use ashlar_layout::ids::Seq;
use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_layout::message::{ListEntry, VersionPage};
use ashlar_layout::page::EntryKind;

use crate::api::{IndexError, Versions};
use crate::key;
use crate::list::{bad_entry, common_prefix, entry_of, past, start};
use crate::walk::{Seen, Step};

/// Something in the page, in its order.
#[derive(Clone, Debug)]
struct Row {
    /// A key or a common prefix.
    name: String,
    /// Which version; of a common prefix the highest there is, for nothing else has that name.
    id: Seq,
    entry: Option<ListEntry>,
}

/// A page in the making.
#[derive(Clone, Debug)]
pub(crate) struct VersionListing {
    params: Versions,
    max: usize,
    /// What keys of versions begin with that are within the prefix,
    versions_from: Vec<u8>,
    /// and those of objects.
    objects_from: Vec<u8>,
    of_versions: Vec<Row>,
    of_objects: Vec<Row>,
    /// The `null` version of the key where the first walk is.
    held: Option<Row>,
    /// Which walk is under way.
    second: bool,
    /// Where it is; none: nothing can follow.
    from: Option<Vec<u8>>,
}

impl VersionListing {
    pub(crate) fn new(params: Versions) -> Self {
        let max = params.list.max.min(LIST_PAGE_MAX) as usize;
        let list = &params.list;
        let mut listing = Self {
            versions_from: key::versions_from(&list.bucket, &list.prefix),
            objects_from: key::object(&list.bucket, &list.prefix),
            params,
            max,
            of_versions: Vec::new(),
            of_objects: Vec::new(),
            held: None,
            second: false,
            from: None,
        };
        listing.from = listing.start(false).filter(|_| max > 0);
        listing
    }

    fn start(&self, second: bool) -> Option<Vec<u8>> {
        let Versions { list, after_id } = &self.params;
        let (at, behind) = start(list)?;
        let bucket = list.bucket.as_str();
        Some(match (second, behind, after_id) {
            (false, true, None) => key::behind_versions(bucket, &at),
            (false, ..) => key::versions_from(bucket, &at),
            (true, _, _) => {
                let mut from = key::object(bucket, &at);
                if behind {
                    key::step_past(&mut from);
                }
                from
            }
        })
    }

    /// Where the walk goes on, if there is one to be made.
    pub(crate) fn from(&mut self) -> Option<&mut Vec<u8>> {
        self.from.as_mut()
    }

    /// The walk that was under way came to its end.
    pub(crate) fn walked(&mut self) {
        let second = std::mem::replace(&mut self.second, true);
        self.of_versions.extend(self.held.take());
        self.from = match second {
            false => self.start(true),
            true => None,
        };
    }

    /// Takes a key that a walk from `from` on shows.
    pub(crate) fn visit(&mut self, key: &[u8], seen: Seen<'_>) -> Result<Step, IndexError> {
        match self.second {
            false => self.visit_version(key, seen),
            true => self.visit_object(key, seen),
        }
    }

    fn visit_version(&mut self, key: &[u8], seen: Seen<'_>) -> Result<Step, IndexError> {
        let list = &self.params.list;
        let within = key.starts_with(&self.versions_from);
        if !within || seen.kind != EntryKind::Object {
            return Ok(Step::Stop);
        }
        let Some((bucket, name, slot)) = key::version_name(key) else {
            return Err(bad_entry(key, "it has no name of a version"));
        };
        let entry = entry_of(key, &name, seen)?;
        let Some(tag) = entry.tag.filter(|tag| tag.slot() == slot) else {
            return Err(bad_entry(key, "it is another version"));
        };
        let (id, row_name) = (tag.id, name.clone());
        let is_next = |held: &mut Row| held.name != name || held.id > id;
        self.of_versions.extend(self.held.take_if(is_next));
        if self.of_versions.len() > self.max {
            return Ok(Step::Stop);
        }
        if let Some(common) = common_prefix(&name, list) {
            let common = common.to_owned();
            self.of_versions.push(Row::common(&common));
            let next = past(common);
            return Ok(next.map_or(Step::Stop, |next| {
                Step::Seek(key::versions_from(&bucket, &next))
            }));
        }
        // Those of the key where the page begins that are no older than it wants them.
        let after = self.params.after_id.filter(|_| list.after == name);
        let before = after.filter(|after| id >= *after);
        let row = Row {
            name: row_name,
            id,
            entry: Some(entry),
        };
        if tag.null {
            self.held = Some(row).filter(|_| before.is_none());
            // It stands before all others, whatever it is called: those that the page begins behind are passed over.
            let from = after.map(|after| key::version(&bucket, &name, after));
            let from = from.filter(|from| from.as_slice() > key);
            return Ok(from.map_or(Step::Next, Step::Seek));
        }
        match before {
            Some(id) if id < tag.id => Ok(Step::Seek(key::version(&bucket, &name, id))),
            Some(_) => Ok(Step::Next),
            None => {
                self.of_versions.push(row);
                Ok(Step::Next)
            }
        }
    }

    fn visit_object(&mut self, key: &[u8], seen: Seen<'_>) -> Result<Step, IndexError> {
        let list = &self.params.list;
        let within = key.starts_with(&self.objects_from);
        if !within || seen.kind != EntryKind::Object || self.of_objects.len() > self.max {
            return Ok(Step::Stop);
        }
        let Some((bucket, name)) = key::object_name(key) else {
            return Err(bad_entry(key, "it has no name of an object"));
        };
        let full = self.of_versions.len() > self.max;
        let last = self.of_versions.last().filter(|_| full);
        if last.is_some_and(|last| name > last.name.as_str()) {
            return Ok(Step::Stop);
        }
        if let Some(common) = common_prefix(name, list) {
            let common = common.to_owned();
            self.of_objects.push(Row::common(&common));
            let next = past(common);
            return Ok(next.map_or(Step::Stop, |next| Step::Seek(key::object(bucket, &next))));
        }
        let entry = entry_of(key, name, seen)?;
        if entry.tag.is_none() {
            self.of_objects.push(Row {
                name: name.to_owned(),
                id: entry.version,
                entry: Some(entry),
            });
        }
        Ok(Step::Next)
    }

    /// The page, when both walks are over.
    pub(crate) fn page(&mut self) -> VersionPage {
        let mut rows = std::mem::take(&mut self.of_versions);
        rows.append(&mut self.of_objects);
        rows.sort_by(|a, b| a.name.cmp(&b.name).then(b.id.cmp(&a.id)));
        rows.dedup_by(|a, b| a.entry.is_none() && b.entry.is_none() && a.name == b.name);
        let more = rows.len() > self.max;
        rows.truncate(self.max);
        let mut page = VersionPage::default();
        if let Some(last) = rows.last().filter(|_| more) {
            page.next = Some((last.name.clone(), last.entry.as_ref().map(|_| last.id)));
        }
        for row in rows {
            match row.entry {
                Some(entry) => page.versions.push(entry),
                None => page.prefixes.push(row.name),
            }
        }
        page
    }

    /// What it is of, and how much is in it.
    pub(crate) fn progress(&self) -> impl std::hash::Hash + '_ {
        let held = self.held.as_ref().map(|row| row.id);
        let rows = (self.of_versions.len(), self.of_objects.len(), held);
        (&self.params, self.second, &self.from, rows)
    }
}

impl Row {
    fn common(prefix: &str) -> Row {
        Row {
            name: prefix.to_owned(),
            id: Seq(u64::MAX),
            entry: None,
        }
    }
}

//! A page of a listing: prefix, delimiter, continuation, as S3 has them.
//!
//! Invariants:
//! - order is that of the keys' UTF-8 bytes, objects and common prefixes in one sequence;
//! - the cost of a page is a step for each object and a seek for each common prefix in it, whatever lies
//!   rolled up underneath: a common prefix is stepped over by a seek, never walked through;
//! - `next` is the last item of the page and is there only if something follows it. But where only markers are, which
//!   no page shows, a page ends after so many of them, and `next` is the last of these: nothing may follow it.

use ashlar_layout::ids::Seq;
use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_layout::message::{ListEntry, ListPage};
use ashlar_layout::page::EntryKind;
use ashlar_layout::root::ObjectValue;

use crate::api::{IndexError, List};
use crate::key;
use crate::walk::{Seen, Step};

/// So many markers in a row end a page: one that shows nothing is not to take for ever.
const MARKERS_MAX: usize = 4 * LIST_PAGE_MAX as usize;

/// A page in the making.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    params: List,
    /// What all keys of the bucket begin with.
    bucket: Vec<u8>,
    /// What all keys of the listing begin with.
    prefix: Vec<u8>,
    pub(crate) page: ListPage,
    last: Option<String>,
    /// Markers that were passed over since then.
    markers: usize,
}

impl Listing {
    /// The page, and the key from which it is to be filled; none if nothing can be in it.
    pub(crate) fn new(params: List) -> (Self, Option<Vec<u8>>) {
        let bucket = key::object(&params.bucket, "");
        let mut from = bucket.clone();
        let start = start(&params);
        let something = params.max > 0 && start.is_some();
        if let Some((at, past)) = start {
            from.extend_from_slice(at.as_bytes());
            if past {
                key::step_past(&mut from);
            }
        }
        let listing = Self {
            prefix: key::object(&params.bucket, &params.prefix),
            params,
            bucket,
            page: ListPage::default(),
            last: None,
            markers: 0,
        };
        (listing, something.then_some(from))
    }

    /// What it is of, and how much is in it.
    pub(crate) fn progress(&self) -> (&List, usize, usize) {
        (
            &self.params,
            self.page.objects.len(),
            self.page.prefixes.len(),
        )
    }

    /// Takes a key that the walk shows.
    pub(crate) fn visit(&mut self, key: &[u8], seen: Seen<'_>) -> Result<Step, IndexError> {
        if !key.starts_with(&self.prefix) || seen.kind != EntryKind::Object {
            return Ok(Step::Stop);
        }
        let name = std::str::from_utf8(&key[self.bucket.len()..])
            .map_err(|error| bad_entry(key, &error.to_string()))?;
        let entry = entry_of(key, name, seen)?;
        if entry.tag.is_some_and(|tag| tag.marker) {
            // It says that there is no object.
            self.markers += 1;
            // Inside of a common prefix no page can begin.
            if self.markers >= MARKERS_MAX && common_prefix(name, &self.params).is_none() {
                self.page.next = Some(name.to_owned());
                return Ok(Step::Stop);
            }
            return Ok(Step::Next);
        }
        self.markers = 0;
        let max = self.params.max.min(LIST_PAGE_MAX) as usize;
        if self.page.objects.len() + self.page.prefixes.len() == max {
            self.page.next = self.last.take();
            return Ok(Step::Stop);
        }
        if let Some(common) = common_prefix(name, &self.params) {
            let common = common.to_owned();
            self.last = Some(common.clone());
            self.page.prefixes.push(common.clone());
            return Ok(match past(common) {
                Some(next) => {
                    let mut target = self.bucket.clone();
                    target.extend_from_slice(next.as_bytes());
                    Step::Seek(target)
                }
                None => Step::Stop,
            });
        }
        self.last = Some(name.to_owned());
        self.page.objects.push(entry);
        Ok(Step::Next)
    }
}

/// What a listing tells of an entry of this name.
pub(crate) fn entry_of(key: &[u8], name: &str, seen: Seen<'_>) -> Result<ListEntry, IndexError> {
    let brief = ObjectValue::brief(seen.value)
        .ok_or_else(|| bad_entry(key, "too few bytes for an object"))?;
    Ok(ListEntry {
        key: name.to_owned(),
        size: brief.size,
        crc: brief.crc,
        etag: brief.etag,
        version: Seq(seen.seq),
        modified_ms: brief.modified_ms,
        tag: brief.tag,
    })
}

pub(crate) fn bad_entry(key: &[u8], reason: &str) -> IndexError {
    IndexError::BadEntry {
        key: String::from_utf8_lossy(key).into_owned(),
        reason: reason.to_owned(),
    }
}

/// Where the page begins, and whether behind that key; `None` if nothing can follow.
pub(crate) fn start(params: &List) -> Option<(String, bool)> {
    let List { prefix, after, .. } = params;
    if after.as_str() < prefix.as_str() {
        return Some((prefix.clone(), false));
    }
    if !after.starts_with(prefix.as_str()) {
        return None;
    }
    if let Some(common) = common_prefix(after, params) {
        return past(common.to_owned()).map(|next| (next, false));
    }
    Some((after.clone(), !after.is_empty()))
}

/// What `key` is rolled up under, if it is.
pub(crate) fn common_prefix<'a>(key: &'a str, params: &List) -> Option<&'a str> {
    if params.delimiter.is_empty() {
        return None;
    }
    let from = params.prefix.len();
    let at = key.get(from..)?.find(params.delimiter.as_str())?;
    key.get(..from + at + params.delimiter.len())
}

/// The least string that is greater than everything that begins with `prefix`. UTF-8 bytes are in
/// the order of the characters, so it is `prefix` with its last character made one greater.
pub(crate) fn past(mut prefix: String) -> Option<String> {
    while let Some(last) = prefix.pop() {
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            other => char::from_u32(u32::from(other) + 1),
        };
        if let Some(next) = next {
            prefix.push(next);
            return Some(prefix);
        }
    }
    None
}

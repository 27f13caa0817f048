//! A page of a listing: prefix, delimiter, continuation, as S3 has them.
//!
//! Invariants:
//! - order is that of the keys' UTF-8 bytes, objects and common prefixes in one sequence;
//! - the cost of a page is a seek for each object or common prefix in it, whatever lies rolled up
//!   underneath: a common prefix is stepped over by a seek, never walked through;
//! - `next` is the last item of the page and is there only if something follows it.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_layout::message::{ListEntry, ListPage};

use crate::api::ListParams;
use crate::index::{Object, Objects};

/// The next page of a bucket.
pub(crate) fn page(objects: &Objects, params: &ListParams) -> ListPage {
    let max = params.max.min(LIST_PAGE_MAX) as usize;
    let mut page = ListPage::default();
    if max == 0 {
        return page;
    }
    let mut from = match start(params) {
        Some(from) => from,
        None => return page,
    };
    let mut last: Option<String> = None;
    loop {
        // Keys one by one while none is rolled up; then a seek past what was.
        let mut rolled = None;
        for (key, object) in objects.range::<str, _>((as_ref(&from), Unbounded)) {
            if !key.starts_with(params.prefix.as_str()) {
                return page;
            }
            if page.objects.len() + page.prefixes.len() == max {
                page.next = last;
                return page;
            }
            if let Some(common) = common_prefix(key, params) {
                rolled = Some(common.to_owned());
                break;
            }
            last = Some(key.to_string());
            page.objects.push(entry(key, object));
        }
        let Some(common) = rolled else {
            return page;
        };
        last = Some(common.clone());
        page.prefixes.push(common.clone());
        match past(common) {
            Some(next) => from = Included(next),
            None => return page,
        }
    }
}

/// Where the page begins; `None` if nothing can follow.
fn start(params: &ListParams) -> Option<Bound<String>> {
    let ListParams { prefix, after, .. } = params;
    if after.as_str() < prefix.as_str() {
        return Some(Included(prefix.clone()));
    }
    if !after.starts_with(prefix.as_str()) {
        return None;
    }
    if let Some(common) = common_prefix(after, params) {
        return past(common.to_owned()).map(Included);
    }
    if after.is_empty() {
        Some(Unbounded)
    } else {
        Some(Excluded(after.clone()))
    }
}

/// What `key` is rolled up under, if it is.
fn common_prefix<'a>(key: &'a str, params: &ListParams) -> Option<&'a str> {
    if params.delimiter.is_empty() {
        return None;
    }
    let from = params.prefix.len();
    let at = key.get(from..)?.find(params.delimiter.as_str())?;
    key.get(..from + at + params.delimiter.len())
}

/// The least string that is greater than everything that begins with `prefix`. UTF-8 bytes are in
/// the order of the characters, so it is `prefix` with its last character made one greater.
fn past(mut prefix: String) -> Option<String> {
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

fn as_ref(bound: &Bound<String>) -> Bound<&str> {
    match bound {
        Included(text) => Included(text.as_str()),
        Excluded(text) => Excluded(text.as_str()),
        Unbounded => Unbounded,
    }
}

fn entry(key: &str, object: &Object) -> ListEntry {
    ListEntry {
        key: key.to_owned(),
        size: object.manifest.size,
        crc: object.manifest.crc,
        version: object.version,
        modified_ms: object.modified_ms,
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::Seq;
    use ashlar_layout::manifest::{Body, Manifest};
    use proptest::prelude::*;

    use super::*;

    fn objects<'a>(keys: impl IntoIterator<Item = &'a str>) -> Objects {
        keys.into_iter()
            .map(|key| {
                let manifest = Manifest {
                    size: key.len() as u64,
                    crc: 7,
                    body: Body::Inline,
                };
                (
                    key.into(),
                    Object {
                        version: Seq(1),
                        modified_ms: 5,
                        manifest,
                    },
                )
            })
            .collect()
    }

    /// What S3 says, said plainly: roll everything up, sort, cut.
    fn naive(keys: &Objects, params: &ListParams) -> (Vec<(String, bool)>, bool) {
        let mut items: Vec<(String, bool)> = Vec::new();
        for key in keys.keys().filter(|key| key.starts_with(&params.prefix)) {
            let rest = &key[params.prefix.len()..];
            let item = match rest.find(&params.delimiter) {
                Some(at) if !params.delimiter.is_empty() => {
                    let end = params.prefix.len() + at + params.delimiter.len();
                    (key[..end].to_owned(), true)
                }
                _ => (key.to_string(), false),
            };
            if items.last() != Some(&item) {
                items.push(item);
            }
        }
        items.retain(|(text, rolled)| {
            let inside = *rolled && params.after.starts_with(text.as_str());
            params.after.is_empty() || (!inside && text.as_bytes() > params.after.as_bytes())
        });
        let more = items.len() > params.max as usize;
        items.truncate(params.max as usize);
        (items, more)
    }

    fn items(page: &ListPage) -> Vec<(String, bool)> {
        let mut items: Vec<_> = page
            .objects
            .iter()
            .map(|o| (o.key.clone(), false))
            .collect();
        items.extend(page.prefixes.iter().map(|p| (p.clone(), true)));
        items.sort();
        items
    }

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![
                3 => Just('a'),
                2 => Just('/'),
                1 => Just('b'),
                1 => Just('\u{d7ff}'),
                1 => Just('\u{e000}'),
                1 => Just('\u{10ffff}'),
                1 => Just('é'),
            ],
            0..6,
        )
        .prop_map(|chars| chars.into_iter().collect())
    }

    fn params() -> impl Strategy<Value = ListParams> {
        let delimiter = prop_oneof![
            Just(String::new()),
            Just("/".to_owned()),
            Just("a/".to_owned()),
            Just("\u{10ffff}".to_owned()),
        ];
        (text(), delimiter, text(), 1..6u32).prop_map(|(prefix, delimiter, after, max)| {
            let prefix: String = prefix.chars().take(2).collect();
            ListParams {
                bucket: String::new(),
                prefix,
                delimiter,
                after,
                max,
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_page_is_what_the_naive_model_says(
            keys in proptest::collection::vec(text(), 0..40),
            params in params(),
        ) {
            let objects = objects(keys.iter().map(String::as_str).filter(|k| !k.is_empty()));
            let page = page(&objects, &params);
            let (expected, more) = naive(&objects, &params);
            prop_assert_eq!(items(&page), expected);
            prop_assert_eq!(page.next.is_some(), more);
        }

        #[test]
        fn pages_joined_are_the_whole(
            keys in proptest::collection::vec(text(), 0..40),
            mut params in params(),
        ) {
            let objects = objects(keys.iter().map(String::as_str).filter(|k| !k.is_empty()));
            let (expected, _) = naive(&objects, &ListParams { max: 1000, ..params.clone() });
            let mut got = Vec::new();
            for _ in 0..100 {
                let page = page(&objects, &params);
                got.extend(items(&page));
                match page.next {
                    Some(next) => params.after = next,
                    None => break,
                }
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn nothing_asked_nothing_given() {
        let params = ListParams::default();
        assert_eq!(page(&objects(["a"]), &params), ListPage::default());
    }

    #[test]
    fn beginning_inside_of_a_common_prefix_skips_all_of_it() {
        let objects = objects(["a/1", "a/2", "a/3", "b"]);
        let params = ListParams {
            delimiter: "/".to_owned(),
            after: "a/1".to_owned(),
            max: 10,
            ..ListParams::default()
        };
        assert_eq!(items(&page(&objects, &params)), [("b".to_owned(), false)]);
    }
}

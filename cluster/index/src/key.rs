//! How buckets and objects are named in the map: one order of bytes for both.
//!
//! Invariants:
//! - all buckets come first, by name; then all objects, by bucket and then by key; then all versions of objects, by
//!   bucket, by key, and of one key the newest first;
//! - a bucket's name has no zero byte (its rules allow none), so no bucket's objects are among another's;
//! - where an object's key stands before another one's, so do its versions: a key's bytes are written one higher there
//!   (UTF-8 has no byte 255), and the zero byte behind them is less than any of these.

use ashlar_layout::ids::Seq;

const BUCKETS: u8 = 1;
const OBJECTS: u8 = 2;
const VERSIONS: u8 = 3;
/// Bytes of a version's name.
const ID_LEN: usize = 8;

/// Where the buckets begin.
pub(crate) fn buckets() -> Vec<u8> {
    vec![BUCKETS]
}

/// Where the objects begin.
pub(crate) fn objects() -> Vec<u8> {
    vec![OBJECTS]
}

/// Where the versions begin.
pub(crate) fn versions() -> Vec<u8> {
    vec![VERSIONS]
}

/// Whether an entry is an object's, and not a version's beside it.
pub(crate) fn is_object(key: &[u8]) -> bool {
    key.first() == Some(&OBJECTS)
}

/// Whether it is a version's.
pub(crate) fn is_version(key: &[u8]) -> bool {
    key.first() == Some(&VERSIONS)
}

/// A bucket's own entry.
pub(crate) fn bucket(name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(BUCKETS);
    key.extend_from_slice(name.as_bytes());
    key
}

/// An object's entry; with an empty key, what all of the bucket's objects begin with.
pub(crate) fn object(bucket: &str, key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + bucket.len() + key.len());
    out.push(OBJECTS);
    out.extend_from_slice(bucket.as_bytes());
    out.push(0);
    out.extend_from_slice(key.as_bytes());
    out
}

/// What all versions of objects begin with whose keys begin so: with an empty key, all of the bucket's.
pub(crate) fn versions_from(bucket: &str, key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 + bucket.len() + key.len() + ID_LEN);
    out.push(VERSIONS);
    out.extend_from_slice(bucket.as_bytes());
    out.push(0);
    out.extend(key.bytes().map(|byte| byte.saturating_add(1)));
    out
}

/// Behind all versions of this object, and before those of any that follows.
pub(crate) fn behind_versions(bucket: &str, key: &str) -> Vec<u8> {
    let mut out = versions_from(bucket, key);
    out.push(1);
    out
}

/// The entry of a version of an object.
pub(crate) fn version(bucket: &str, key: &str, id: Seq) -> Vec<u8> {
    let mut out = versions_from(bucket, key);
    out.push(0);
    out.extend_from_slice(&(!id.0).to_be_bytes());
    out
}

/// Bucket and key of a version's entry, and which version it is.
pub(crate) fn version_name(key: &[u8]) -> Option<(String, String, Seq)> {
    let (kind, rest) = key.split_first()?;
    (*kind == VERSIONS).then_some(())?;
    let zero = rest.iter().position(|byte| *byte == 0)?;
    let (bucket, rest) = (&rest[..zero], &rest[zero + 1..]);
    let (rest, id) = rest.split_last_chunk::<ID_LEN>()?;
    let (last, raised) = rest.split_last()?;
    (*last == 0 && !raised.contains(&0)).then_some(())?;
    let bucket = String::from_utf8(bucket.to_vec()).ok()?;
    let key = String::from_utf8(raised.iter().map(|byte| byte - 1).collect()).ok()?;
    Some((bucket, key, Seq(!u64::from_be_bytes(*id))))
}

/// Where among the objects an entry counts: a version's, which may be cut short anywhere, as its object's would.
pub(crate) fn place(key: &[u8]) -> Vec<u8> {
    let Some((kind, rest)) = key.split_first().filter(|(kind, _)| **kind == VERSIONS) else {
        return key.to_vec();
    };
    debug_assert_eq!(*kind, VERSIONS);
    let mut out = vec![OBJECTS];
    let mut parts = rest.splitn(3, |byte| *byte == 0);
    out.extend_from_slice(parts.next().unwrap_or_default());
    if let Some(raised) = parts.next() {
        out.push(0);
        out.extend(raised.iter().map(|byte| byte - 1));
    }
    out
}

/// The name of a bucket, of its own entry's key.
pub(crate) fn bucket_name(key: &[u8]) -> Option<&str> {
    let (kind, name) = key.split_first()?;
    (*kind == BUCKETS).then_some(())?;
    std::str::from_utf8(name).ok()
}

/// Bucket and key of an object's entry.
pub(crate) fn object_name(key: &[u8]) -> Option<(&str, &str)> {
    let (kind, rest) = key.split_first()?;
    (*kind == OBJECTS).then_some(())?;
    let zero = rest.iter().position(|byte| *byte == 0)?;
    let bucket = std::str::from_utf8(&rest[..zero]).ok()?;
    let key = std::str::from_utf8(&rest[zero + 1..]).ok()?;
    Some((bucket, key))
}

/// A place in the order of objects that is at or right before a key, which may be cut short anywhere.
pub(crate) fn border(key: &[u8]) -> Option<(String, String)> {
    let key = place(key);
    let (kind, rest) = key.split_first()?;
    (*kind == OBJECTS).then_some(())?;
    let text = |bytes: &[u8]| {
        let whole = bytes.utf8_chunks().next();
        whole.map_or_else(String::new, |chunk| chunk.valid().to_owned())
    };
    match rest.iter().position(|byte| *byte == 0) {
        Some(zero) => Some((text(&rest[..zero]), text(&rest[zero + 1..]))),
        None => Some((text(rest), String::new())),
    }
}

/// Makes a key the least one that is greater.
pub(crate) fn step_past(key: &mut Vec<u8>) {
    key.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_as_their_objects_do() {
        let keys = [
            "",
            "\0",
            "\0\0",
            "\0a",
            "\u{1}",
            "a",
            "a\0",
            "a\0b",
            "a\u{1}",
            "aa",
            "ab",
            "b",
            "\u{10ffff}",
        ];
        let names: Vec<(&str, &str)> = ["aaa", "aaa.b", "bbb"]
            .into_iter()
            .flat_map(|bucket| keys.map(|key| (bucket, key)))
            .collect();
        let ids = [u64::MAX, 1 << 40, 256, 255, 1, 0];
        let mut before: Option<Vec<u8>> = None;
        let mut sorted = names.clone();
        sorted.sort_by_key(|(bucket, key)| object(bucket, key));
        assert_eq!(sorted, names);
        for (bucket, key) in names {
            for id in ids.map(Seq) {
                let at = version(bucket, key, id);
                assert!(
                    before.as_ref().is_none_or(|before| *before < at),
                    "{bucket} {key:?} {id}"
                );
                let name = (bucket.to_owned(), key.to_owned(), id);
                assert_eq!(version_name(&at), Some(name));
                assert!(at >= versions_from(bucket, key) && at < behind_versions(bucket, key));
                assert_eq!(place(&at), object(bucket, key));
                assert_eq!(border(&at), Some((bucket.to_owned(), key.to_owned())));
                assert!((0..at.len()).all(|cut| place(&at[..cut]) <= object(bucket, key)));
                before = Some(at);
            }
        }
    }

    #[test]
    fn what_is_no_version() {
        let whole = version("aaa", "key", Seq(7));
        assert_eq!(version_name(&object("aaa", "key")), None);
        for cut in 0..whole.len() {
            assert_eq!(version_name(&whole[..cut]), None, "{cut}");
        }
    }
}

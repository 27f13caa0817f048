//! How buckets and objects are named in the map: one order of bytes for both.
//!
//! Invariants:
//! - all buckets come first, by name; then all objects, by bucket and then by key;
//! - a bucket's name has no zero byte (its rules allow none), so no bucket's objects are among another's.

const BUCKETS: u8 = 1;
const OBJECTS: u8 = 2;

/// Where the buckets begin.
pub(crate) fn buckets() -> Vec<u8> {
    vec![BUCKETS]
}

/// Where the objects begin.
pub(crate) fn objects() -> Vec<u8> {
    vec![OBJECTS]
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

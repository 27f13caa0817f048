//! What is visible of a run: windows of keys, in the order of the map.
//!
//! A range of a partition is a stretch of (bucket, key), where a bucket's own record counts as
//! (bucket, ""). In the map all buckets come before all objects, and all objects before all versions of such, so
//! a range is three windows there; a bucket's record that is carried along is one more.
//!
//! Invariants:
//! - windows ascend, none is empty, and none touches the next;
//! - no windows at all means that everything is visible: what shows nothing is left out instead.

use ashlar_layout::root::Window;

use crate::api::Range;
use crate::key;

/// Where the next visible key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// The key itself is.
    Here,
    /// Where this window begins, or behind that.
    From(usize),
    /// Nowhere.
    Nothing,
}

/// What is visible from a key on.
pub(crate) fn ahead(clip: &[Window], key: &[u8]) -> Ahead {
    if clip.is_empty() {
        return Ahead::Here;
    }
    let past = |window: &Window| !window.to.is_empty() && *window.to <= *key;
    let at = clip.partition_point(past);
    match clip.get(at) {
        Some(window) if *window.from <= *key => Ahead::Here,
        Some(_) => Ahead::From(at),
        None => Ahead::Nothing,
    }
}

/// Whether a key is visible.
pub(crate) fn sees(clip: &[Window], key: &[u8]) -> bool {
    ahead(clip, key) == Ahead::Here
}

/// Whether anything from one key to another, both included, is visible.
pub(crate) fn touches(clip: &[Window], lowest: &[u8], highest: &[u8]) -> bool {
    match ahead(clip, lowest) {
        Ahead::Here => true,
        Ahead::From(window) => *clip[window].from <= *highest,
        Ahead::Nothing => false,
    }
}

fn ends_before(a: &[u8], b: &[u8]) -> bool {
    match (a, b) {
        ([], _) => false,
        (_, []) => true,
        (a, b) => a < b,
    }
}

/// What two clips both show; `None` if that is nothing.
pub(crate) fn meet(clip: &[Window], windows: &[Window]) -> Option<Vec<Window>> {
    if clip.is_empty() {
        return Some(windows.to_vec());
    }
    if windows.is_empty() {
        return Some(clip.to_vec());
    }
    let mut out = Vec::new();
    let (mut left, mut right) = (clip.iter().peekable(), windows.iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let from = (&a.from).max(&b.from);
        let (first, to) = if ends_before(&a.to, &b.to) {
            (true, &a.to)
        } else {
            (false, &b.to)
        };
        if to.is_empty() || from < to {
            let (from, to) = (from.clone(), to.clone());
            out.push(Window { from, to });
        }
        if first {
            left.next();
        } else {
            right.next();
        }
    }
    (!out.is_empty()).then_some(out)
}

/// What one clip or the other shows.
pub(crate) fn join(a: &[Window], b: &[Window]) -> Vec<Window> {
    if a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    joined(a.iter().chain(b).cloned().collect())
}

/// Puts windows in order, and together what overlaps or touches.
fn joined(mut windows: Vec<Window>) -> Vec<Window> {
    windows.sort();
    let mut out: Vec<Window> = Vec::new();
    for window in windows {
        match out.last_mut() {
            Some(last) if last.to.is_empty() || window.from <= last.to => {
                if ends_before(&last.to, &window.to) {
                    last.to = window.to;
                }
            }
            _ => out.push(window),
        }
    }
    out
}

/// The windows of a range, and those of the records of buckets that are carried along. There is one at least: that
/// of a range with nothing in it shows no key that there can be.
pub(crate) fn windows(range: &Range, carry: &[String]) -> Vec<Window> {
    let (mut from_bucket, mut from_object) = (key::buckets(), key::objects());
    let mut from_version = key::versions();
    if let Some((bucket, key)) = &range.from {
        from_object = key::object(bucket, key);
        from_version = key::versions_from(bucket, key);
        from_bucket = key::bucket(bucket);
        if !key.is_empty() {
            key::step_past(&mut from_bucket);
        }
    }
    let (mut to_bucket, mut to_object) = (key::objects(), key::versions());
    let mut to_version = Vec::new();
    if let Some((bucket, key)) = &range.to {
        to_object = key::object(bucket, key);
        to_version = key::versions_from(bucket, key);
        to_bucket = key::bucket(bucket);
        if !key.is_empty() {
            key::step_past(&mut to_bucket);
        }
    }
    let window = |from: Vec<u8>, to: Vec<u8>| Window { from, to };
    let mut windows = vec![
        window(from_bucket, to_bucket),
        window(from_object, to_object),
        window(from_version, to_version),
    ];
    windows.extend(carry.iter().map(|name| {
        let from = key::bucket(name);
        let mut to = from.clone();
        key::step_past(&mut to);
        window(from, to)
    }));
    windows.retain(|window| window.to.is_empty() || window.from < window.to);
    if windows.is_empty() {
        // No key begins with a zero.
        return vec![window(vec![0], vec![0, 0])];
    }
    joined(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(windows: &[(&str, &str)]) -> Vec<Window> {
        let window = |(from, to): &(&str, &str)| Window {
            from: from.as_bytes().to_vec(),
            to: to.as_bytes().to_vec(),
        };
        windows.iter().map(window).collect()
    }

    /// All clips of up to three windows over a few keys, against plain sets of keys.
    #[test]
    fn clips_are_sets_of_keys() {
        let keys: Vec<Vec<u8>> = (b'a'..=b'g').map(|byte| vec![byte]).collect();
        let mut clips = Vec::new();
        for shown in 1u32..1 << keys.len() {
            let mut windows = Vec::new();
            for (at, key) in keys
                .iter()
                .enumerate()
                .filter(|(at, _)| shown >> at & 1 == 1)
            {
                let to = keys.get(at + 1).cloned().unwrap_or_default();
                windows.push(Window {
                    from: key.clone(),
                    to,
                });
            }
            windows.reverse();
            clips.push((shown, joined(windows)));
        }
        let set = |clip: &[Window]| {
            let seen = keys.iter().enumerate().filter(|(_, key)| sees(clip, key));
            seen.map(|(at, _)| 1u32 << at).sum::<u32>()
        };
        for (a, left) in &clips {
            assert_eq!(set(left), *a);
            for (b, right) in &clips {
                assert_eq!(
                    meet(left, right).map(|clip| set(&clip)),
                    (a & b > 0).then_some(a & b)
                );
                assert_eq!(set(&join(left, right)), a | b);
            }
            for (at, key) in keys.iter().enumerate() {
                let next = (at..keys.len()).find(|next| a >> next & 1 == 1);
                match (ahead(left, key), next) {
                    (Ahead::Here, next) => assert_eq!(next, Some(at)),
                    (Ahead::From(window), Some(next)) => assert_eq!(left[window].from, keys[next]),
                    (Ahead::Nothing, next) => assert_eq!(next, None),
                    other => panic!("{other:?}"),
                }
                for (to, highest) in keys.iter().enumerate().skip(at) {
                    let some = (at..=to).any(|key| a >> key & 1 == 1);
                    assert_eq!(touches(left, key, highest), some);
                }
            }
        }
    }

    #[test]
    fn all_and_nothing() {
        let some = clip(&[("b", "d"), ("f", "")]);
        assert_eq!(meet(&[], &some), Some(some.clone()));
        assert_eq!(meet(&some, &[]), Some(some.clone()));
        assert_eq!(meet(&some, &clip(&[("d", "f")])), None);
        assert!(join(&some, &[]).is_empty() && sees(&[], b"any"));
        assert_eq!(
            join(&some, &clip(&[("d", "e")])),
            clip(&[("b", "e"), ("f", "")])
        );
    }

    #[test]
    fn ranges_are_those_of_buckets_and_keys() {
        let names = ["aaa", "aaa.b", "bbb", "ccc"];
        let keys = ["", "k", "kk", "z"];
        let mut spots: Vec<Option<(String, String)>> = vec![None];
        for name in names {
            spots.extend(keys.map(|key| Some((name.to_owned(), key.to_owned()))));
        }
        for (from, to) in spots.iter().flat_map(|a| spots.iter().map(move |b| (a, b))) {
            let (from, to) = (from.clone(), to.clone());
            let range = Range { from, to };
            let carry = vec!["bbb".to_owned()];
            let clip = windows(&range, &carry);
            for name in names {
                let carried = name == "bbb" || range.contains(name, "");
                assert_eq!(sees(&clip, &key::bucket(name)), carried, "{range:?} {name}");
                for key in &keys[1..] {
                    let seen = sees(&clip, &key::object(name, key));
                    assert_eq!(seen, range.contains(name, key), "{range:?} {name} {key}");
                    for id in [0, 7, u64::MAX] {
                        let version = key::version(name, key, ashlar_layout::ids::Seq(id));
                        assert_eq!(sees(&clip, &version), seen, "{range:?} {name} {key} {id}");
                    }
                }
            }
        }
    }
}

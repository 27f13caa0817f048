//! Versions of objects: what a change of one depends on, whether it may be made, and what it makes of the map.
//!
//! Invariants:
//! - each version that is kept has an entry of its own in the map, and the current object is written once more as such:
//!   overwriting it loses nothing, and nothing is read when an entry is applied;
//! - a current object without such an entry (it was put when its bucket kept none) is never overwritten by a new
//!   version other than the `null` one, which it is itself: it must be made a version first;
//! - whoever removes the current version names what is current then, and the head makes sure that this still is the
//!   entry that was looked at: what it names cannot have been removed, or written anew, meanwhile. Newer ones than that
//!   cannot have come, for they would be current;
//! - who changes a version's lock, or what else is remembered of one that is not current, names the entry that wrote it
//!   last, and what it is made of: nobody else changed it meanwhile;
//! - an object gets another key only if the entry that was looked at still is what is current under the one that it
//!   has, and its bytes are where they were; versions, and what is put over versions, have no other keys;
//! - who says that stripes are elsewhere names the entry that wrote the object last, and changes nothing else of it;
//! - who writes a version anew leaves its bytes where they are by then: what it was looked at with may be freed;
//! - what a change displaces is named by nothing else: a version's shards are freed when its own entry goes, and not
//!   before.

use ashlar_cluster_index::{Change, Name, Object, Question};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Body, Manifest, NULL_VERSION, Op, Then, VersionTag};
use ashlar_layout::message::ErrorCode;

use crate::locks;
use crate::pending::Held;

/// The versions whose entries a change depends on, if it does: no change of the key may be pending then.
pub(crate) fn depends_on(op: &Op) -> Option<Vec<Seq>> {
    match op {
        Op::PutVersion {
            tag, current: true, ..
        }
        | Op::LockVersion {
            tag, current: true, ..
        } if tag.null => Some(vec![NULL_VERSION]),
        Op::PutVersion {
            tag,
            current: false,
            ..
        }
        | Op::LockVersion {
            tag,
            current: false,
            ..
        }
        | Op::Relocate {
            tag: Some(tag),
            current: false,
            ..
        } => Some(vec![tag.slot()]),
        Op::DropVersion { id, then, .. } => match then {
            Then::Version { tag, .. } => Some(vec![*id, tag.slot()]),
            Then::Same | Then::Nothing => Some(vec![*id]),
        },
        _ => None,
    }
}

/// What the index is asked for that: the current object first.
pub(crate) fn question(bucket: &str, key: &str, versions: &[Seq]) -> Question {
    let name = |id| Name {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        id,
    };
    let versions = versions.iter().copied().map(Some);
    Question::Named([None].into_iter().chain(versions).map(name).collect())
}

/// What it is asked of what is current under two keys.
pub(crate) fn question_of_two(bucket: &str, keys: [&str; 2]) -> Question {
    let name = |key: &str| Name {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        id: None,
    };
    Question::Named(keys.map(name).into())
}

/// Whether the current object is the version of this place.
fn is_at(current: Option<&Held>, slot: Seq) -> bool {
    current.is_some_and(|held| held.named().slot() == slot)
}

/// Whether a change may be made, by the current object, the versions that it depends on, and their locks; why not, and
/// what there is instead.
pub(crate) fn judge(
    op: &Op,
    current: Option<&Held>,
    versions: &[Option<Held>],
    now_ms: u64,
) -> Result<(), (ErrorCode, &'static str)> {
    judge_version(op, current, versions)?;
    let first = versions.first().and_then(Option::as_ref);
    locks::judge(op, current, first, now_ms)
}

fn judge_version(
    op: &Op,
    current: Option<&Held>,
    versions: &[Option<Held>],
) -> Result<(), (ErrorCode, &'static str)> {
    let first = versions.first().and_then(Option::as_ref);
    let lost = |what| Err((ErrorCode::PreconditionFailed, what));
    match op {
        Op::PutVersion {
            tag, current: true, ..
        } if tag.id == Seq(0) => match current {
            Some(held) if held.tag.is_none() && (!tag.null || first.is_some()) => not_kept(),
            _ => Ok(()),
        },
        Op::PutVersion {
            tag,
            current: true,
            manifest,
            ..
        } => match current {
            Some(held) if !is_where(manifest, &held.manifest) => lost("it is elsewhere by now"),
            Some(held) if held.named() == *tag => Ok(()),
            // It is made a version with a name of its own, for the `null` one has to stay.
            Some(held) if held.tag.is_none() && *tag == with_own_name(held) => Ok(()),
            _ => lost("another version is current by now"),
        },
        Op::LockVersion { current: true, .. }
            if current.is_some_and(|held| held.tag.is_none()) && first.is_some() =>
        {
            not_kept()
        }
        Op::LockVersion {
            tag,
            seen,
            current: is_current,
            manifest,
            ..
        } => match if *is_current { current } else { first } {
            None => Err((ErrorCode::NotFound, "there is no such version")),
            Some(_) if !is_current && is_at(current, tag.slot()) => {
                lost("that version is current by now")
            }
            Some(held) => {
                let lock = held.named().lock;
                let is_it = held.version == *seen && held.named() == VersionTag { lock, ..*tag };
                match is_it && has_bytes_of(manifest, &held.manifest) {
                    true => Ok(()),
                    false => lost("it is another version by now, or was written anew"),
                }
            }
        },
        Op::Relocate {
            tag,
            seen,
            current: is_current,
            manifest,
            ..
        } => match if *is_current { current } else { first } {
            None => Err((ErrorCode::NotFound, "there is no such object any more")),
            Some(_) if !is_current && tag.is_some_and(|tag| is_at(current, tag.slot())) => {
                lost("that version is current by now")
            }
            Some(held) if held.version != *seen || held.tag != *tag => {
                lost("it is another object by now, or was written anew")
            }
            // What is no version may be remembered otherwise: one that is has changes for that, which ask for its lock.
            Some(held) if tag.is_none() && has_bytes_of(manifest, &held.manifest) => Ok(()),
            Some(held) if !is_the_same(manifest, &held.manifest) => Err((
                ErrorCode::BadRequest,
                "something else of it would change than where its stripes are",
            )),
            Some(_) => Ok(()),
        },
        Op::PutVersion { tag, manifest, .. } => match first {
            None => Err((ErrorCode::NotFound, "there is no such version")),
            Some(held) if held.named() != *tag => lost("it is another version by now"),
            Some(held) if !is_where(manifest, &held.manifest) => lost("it is elsewhere by now"),
            Some(_) if is_at(current, tag.slot()) => lost("that version is current by now"),
            Some(_) => Ok(()),
        },
        Op::DropVersion {
            id,
            then: Then::Same,
            ..
        } => match first {
            _ if is_at(current, *id) => lost("that version is current by now"),
            None => Err((ErrorCode::NotFound, "there is no such version")),
            Some(_) => Ok(()),
        },
        Op::DropVersion { id, .. } if !is_at(current, *id) => {
            lost("that version is not current any more")
        }
        Op::DropVersion { .. } if current.is_some_and(|it| it.tag.is_none()) && first.is_some() => {
            not_kept()
        }
        Op::DropVersion {
            then:
                Then::Version {
                    seen,
                    tag,
                    manifest,
                    ..
                },
            ..
        } => match versions.get(1).and_then(Option::as_ref) {
            // Whoever names another one than is there would have it freed while it is current.
            Some(held) if held.tag.is_some() && is_same(held, *seen, *tag, manifest) => Ok(()),
            _ => lost("the version before it is gone, or was changed"),
        },
        Op::Rename { seen, manifest, .. } => match first {
            None => lost("there is no object under its key any more"),
            Some(held) if held.version != *seen => lost("it is another object by now"),
            Some(held) if held.tag.is_some() || current.is_some_and(|it| it.tag.is_some()) => {
                Err((
                    ErrorCode::BadRequest,
                    "versions have no other keys, and nothing else gets the key of one",
                ))
            }
            Some(held) if !has_bytes_of(manifest, &held.manifest) => Err((
                ErrorCode::BadRequest,
                "its bytes are others, or elsewhere, than was said",
            )),
            Some(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether a version that is kept is the one that is named, and nothing else is said of it than is so.
fn is_same(held: &Held, seen: Seq, tag: VersionTag, manifest: &Manifest) -> bool {
    held.version == seen && held.named() == tag && held.manifest == *manifest
}

/// Whether an object is made of what another one is: what else is remembered of it may differ.
fn has_bytes_of(new: &Manifest, old: &Manifest) -> bool {
    (new.size, new.crc) == (old.size, old.crc) && new.body == old.body
}

/// Whether a version that is written anew has its bytes where they are, if they are the same bytes. Others are the
/// matter of its lock.
fn is_where(new: &Manifest, old: &Manifest) -> bool {
    new.body == old.body || (new.size, new.crc) != (old.size, old.crc)
}

/// Whether an object is the same one, but for where its stripes are.
fn is_the_same(new: &Manifest, old: &Manifest) -> bool {
    let shape = |manifest: &Manifest| match &manifest.body {
        Body::Inline => (0, Vec::new()),
        // Lists may be longer than they were.
        Body::Stripes(all) => (1, all.iter().map(|it| u64::from(it.data_len)).collect()),
        Body::Tree(nodes) => (2, vec![nodes.len() as u64]),
        Body::Parts { bytes, .. } => (3, bytes.clone()),
    };
    (new.size, new.crc, new.etag) == (old.size, old.crc, old.etag)
        && new.attributes == old.attributes
        && shape(new) == shape(old)
}

/// What an object is called that was put when no versions were kept, if it is not to be the `null` version.
fn with_own_name(held: &Held) -> VersionTag {
    VersionTag {
        id: held.version,
        ..VersionTag::default()
    }
}

/// Of a `null` version that is kept and another one that is not, the first is to be gone before anything else.
fn not_kept() -> Result<(), (ErrorCode, &'static str)> {
    Err((
        ErrorCode::NotKept,
        "the current object is no version yet: it has to be made one first",
    ))
}

/// The name that a version gets by entry `seq`.
fn named(tag: VersionTag, seq: Seq) -> VersionTag {
    let id = if tag.id == Seq(0) { seq } else { tag.id };
    VersionTag { id, ..tag }
}

/// What the current object is after entry `seq`.
pub(crate) fn current_after(op: &Op, seq: Seq, before: Option<&Held>) -> Option<Held> {
    let held = |manifest: &Manifest, tag| {
        Some(Held {
            version: seq,
            manifest: manifest.clone(),
            tag,
        })
    };
    match op {
        Op::Put { manifest, .. } | Op::Rename { manifest, .. } => held(manifest, None),
        Op::PutVersion {
            tag,
            current: true,
            manifest,
            ..
        }
        | Op::LockVersion {
            tag,
            current: true,
            manifest,
            ..
        } => held(manifest, Some(named(*tag, seq))),
        Op::Relocate {
            tag,
            current: true,
            manifest,
            ..
        } => held(manifest, *tag),
        Op::DropVersion {
            then: Then::Version { tag, manifest, .. },
            ..
        } => held(manifest, Some(*tag)),
        Op::Delete { .. }
        | Op::DropVersion {
            then: Then::Nothing,
            ..
        } => None,
        _ => before.cloned(),
    }
}

/// What may be freed once a change is made: of the current object and the versions that it depended on, what nothing
/// names any more. Never a stripe that the change names itself. (If a change were ever done twice, the object's own
/// shards would be freed otherwise.)
pub(crate) fn displaced(
    op: &Op,
    current: Option<Held>,
    versions: Vec<Option<Held>>,
) -> Option<Manifest> {
    let first = versions.into_iter().next().flatten();
    if let Op::Relocate {
        current: is_current,
        manifest,
        ..
    } = op
    {
        let old = if *is_current { current } else { first };
        return without(old?.manifest, manifest);
    }
    let plain = current.filter(|held| held.tag.is_none());
    match op {
        // A version's entry keeps what it names.
        Op::Put { manifest, .. } | Op::Rename { manifest, .. } => {
            without(plain?.manifest, manifest)
        }
        Op::Delete { .. } => Some(plain?.manifest),
        Op::PutVersion { tag, manifest, .. } => {
            // One that is written anew names the same.
            let plain = plain.filter(|_| tag.id == Seq(0));
            without(plain.or(first)?.manifest, manifest)
        }
        Op::DropVersion {
            then: Then::Same, ..
        } => Some(first?.manifest),
        Op::DropVersion { then, .. } => {
            let old = plain.or(first)?.manifest;
            match then {
                Then::Version { manifest, .. } => without(old, manifest),
                _ => Some(old),
            }
        }
        _ => None,
    }
}

fn without(mut old: Manifest, new: &Manifest) -> Option<Manifest> {
    old.body = old.body.without(&new.body)?;
    Some(old)
}

/// A version as the map is to have it.
pub(crate) struct Made {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) tag: VersionTag,
    pub(crate) current: bool,
    pub(crate) object: Object,
}

impl Made {
    /// What entry `seq`, which makes it, does to the map.
    pub(crate) fn change(self, seq: Seq) -> Change {
        let tag = named(self.tag, seq);
        let object = Object {
            tag: Some(tag),
            ..self.object
        };
        let mut changes = Vec::with_capacity(2);
        if self.current {
            changes.push(Change::Put {
                bucket: self.bucket.clone(),
                key: self.key.clone(),
                object: object.clone(),
            });
        }
        changes.push(Change::PutVersion {
            bucket: self.bucket,
            key: self.key,
            id: tag.slot(),
            object,
        });
        Change::All(changes)
    }
}

/// What the removal of a version does to the map; `next` is what is current then, if something else is.
pub(crate) fn drop_change(
    (bucket, key, id): (String, String, Seq),
    current: bool,
    next: Option<Object>,
) -> Change {
    let gone = Change::DropVersion {
        bucket: bucket.clone(),
        key: key.clone(),
        id,
    };
    if !current {
        return gone;
    }
    let then = match next {
        Some(object) => Change::Put {
            bucket,
            key,
            object,
        },
        None => Change::Delete { bucket, key },
    };
    Change::All(vec![gone, then])
}

/// What it does to the map that an object gets another key.
pub(crate) fn rename_change(
    bucket: String,
    (source, key): (String, String),
    object: Object,
) -> Change {
    Change::All(vec![
        Change::Delete {
            bucket: bucket.clone(),
            key: source,
        },
        Change::Put {
            bucket,
            key,
            object,
        },
    ])
}

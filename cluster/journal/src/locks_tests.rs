//! What locks refuse, asked of a chain that serves.

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{PgId, Seq, StripeId};
use ashlar_layout::lock::{Lock, Retention, RetentionMode};
use ashlar_layout::manifest::{
    Body, Manifest, NULL_VERSION, Op, Precondition, Stripe, Then, VersionTag,
};
use ashlar_layout::message::{ErrorCode, ObjectMeta, Reply};

use crate::replica_tests::{QUIET, Script, delete, put};
use crate::review_tests::version;

const NONE: Precondition = Precondition::None;
const LOCKED: ErrorCode = ErrorCode::Locked;
const LOST: ErrorCode = ErrorCode::PreconditionFailed;

fn until(mode: RetentionMode, until_ms: u64) -> Lock {
    Lock {
        retention: Some(Retention { mode, until_ms }),
        hold: None,
    }
}

fn held(on: bool) -> Lock {
    Lock {
        hold: Some(on),
        ..Lock::NONE
    }
}

fn new(lock: Lock) -> VersionTag {
    VersionTag {
        lock,
        ..VersionTag::default()
    }
}

fn named(meta: &ObjectMeta) -> VersionTag {
    meta.tag.unwrap_or(VersionTag::of_plain(meta.version))
}

/// The change of the lock of what was looked at.
fn lock(key: &str, meta: &ObjectMeta, current: bool, lock: Lock, bypass: bool) -> Op {
    Op::LockVersion {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        tag: VersionTag {
            lock,
            ..named(meta)
        },
        seen: meta.version,
        current,
        modified_ms: meta.modified_ms,
        manifest: meta.manifest.clone(),
        bypass,
    }
}

fn remove(key: &str, id: Seq, then: Then, bypass: bool) -> Op {
    Op::DropVersion {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        id,
        then,
        bypass,
    }
}

impl Script {
    fn meta(&self, key: &str, id: Option<Seq>) -> ObjectMeta {
        self.look_at(key, id).unwrap().meta
    }

    /// Gives a version another lock, all of whose bytes are these.
    fn relock(&mut self, key: &str, id: Option<Seq>, to: Lock, bypass: bool) -> Option<ErrorCode> {
        let meta = self.meta(key, id);
        let op = lock(key, &meta, id.is_none(), to, bypass);
        let asked = self.ask(op, NONE, b"abc");
        match self.answer(asked) {
            Reply::Committed { .. } => None,
            Reply::Error(error) => Some(error.code),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_locked_is_not_removed() {
    use RetentionMode::{Compliance, Governance};
    for (lock, bypassed) in [
        (until(Governance, 2000), true),
        (until(Compliance, 2000), false),
        (held(true), false),
    ] {
        let mut script = Script::with(QUIET);
        let (id, _) = script.done(version("k", new(lock), true, b"abc"), NONE, b"abc");
        assert_eq!(named(&script.meta("k", None)).lock, lock);
        assert_eq!(named(&script.meta("k", Some(id))).lock, lock);
        let gone = |bypass| remove("k", id, Then::Nothing, bypass);
        assert_eq!(script.refused(gone(false), NONE, b""), LOCKED, "{lock:?}");
        if bypassed {
            script.done(gone(true), NONE, b"");
            continue;
        }
        assert_eq!(script.refused(gone(true), NONE, b""), LOCKED, "{lock:?}");
        // Nor behind others: a marker, and what the native client puts and removes.
        let marker = VersionTag {
            marker: true,
            ..VersionTag::default()
        };
        script.done(version("k", marker, true, b""), NONE, b"");
        script.done(put("k", b"other"), NONE, b"other");
        script.done(delete("k"), NONE, b"");
        let below = remove("k", id, Then::Same, true);
        assert_eq!(script.refused(below.clone(), NONE, b""), LOCKED);
        assert_eq!(&script.look_at("k", Some(id)).unwrap().payload[..], b"abc");
        script.wall_ms = 1999;
        assert_eq!(script.refused(below.clone(), NONE, b""), LOCKED);
        script.wall_ms = 2000;
        match lock.hold {
            Some(_) => assert_eq!(script.refused(below, NONE, b""), LOCKED),
            None => drop(script.done(below, NONE, b"")),
        }
    }
}

#[test]
fn a_bucket_with_a_locked_version_stays() {
    let mut script = Script::with(QUIET);
    script.done(version("k", new(held(true)), true, b"abc"), NONE, b"abc");
    script.done(delete("k"), NONE, b"");
    let bucket = Op::DeleteBucket {
        bucket: "bucket".to_owned(),
    };
    assert_eq!(script.refused(bucket, NONE, b""), ErrorCode::BucketNotEmpty);
}

/// One of them is first, and the other one is told so, although nothing of either is committed.
#[test]
fn a_hold_and_a_removal_that_come_together() {
    for hold_first in [true, false] {
        let mut script = Script::with(QUIET);
        let (id, _) = script.done(version("k", new(Lock::NONE), true, b"abc"), NONE, b"abc");
        script.done(version("k", new(Lock::NONE), true, b"x"), NONE, b"x");
        let hold = lock("k", &script.meta("k", Some(id)), false, held(true), false);
        let gone = remove("k", id, Then::Same, true);
        let (first, second) = match hold_first {
            true => (script.ask(hold, NONE, b"abc"), script.ask(gone, NONE, b"")),
            false => (script.ask(gone, NONE, b""), script.ask(hold, NONE, b"abc")),
        };
        assert!(matches!(script.answer(first), Reply::Committed { .. }));
        let Reply::Error(error) = script.answer(second) else {
            panic!("both are done, hold first: {hold_first}");
        };
        let expected = if hold_first {
            LOCKED
        } else {
            ErrorCode::NotFound
        };
        assert_eq!(error.code, expected);
        assert_eq!(script.look_at("k", Some(id)).is_ok(), hold_first);
    }
}

#[test]
fn who_changes_a_lock_names_what_was_found() {
    let mut script = Script::with(QUIET);
    let (id, _) = script.done(version("k", new(Lock::NONE), true, b"abc"), NONE, b"abc");
    let before = script.meta("k", None);
    assert_eq!(script.relock("k", None, held(true), false), None);
    // Another gateway that goes by what was there would take the hold back unseen.
    let stale = lock(
        "k",
        &before,
        true,
        until(RetentionMode::Compliance, 9999),
        false,
    );
    assert_eq!(script.refused(stale, NONE, b"abc"), LOST);
    // Nor does who writes tags anew.
    let tags = version("k", named(&before), true, b"abc");
    assert_eq!(script.refused(tags, NONE, b"abc"), LOST);
    let now = script.meta("k", None);
    assert_eq!(named(&now).lock, held(true));
    script.done(version("k", named(&now), true, b"abc"), NONE, b"abc");
    // The same of one that is not current any more.
    script.done(version("k", new(Lock::NONE), true, b"x"), NONE, b"x");
    let before = script.meta("k", Some(id));
    assert_eq!(script.relock("k", Some(id), held(false), false), None);
    let stale = lock("k", &before, false, held(true), false);
    assert_eq!(script.refused(stale, NONE, b"abc"), LOST);
    let tags = version("k", named(&before), false, b"abc");
    assert_eq!(script.refused(tags, NONE, b"abc"), LOST);
    let current = lock("k", &script.meta("k", Some(id)), true, held(true), false);
    assert_eq!(script.refused(current, NONE, b"abc"), LOST);
    let none = VersionTag {
        id: Seq(7777),
        ..VersionTag::default()
    };
    let mut none = ObjectMeta {
        tag: Some(none),
        ..script.meta("k", Some(id))
    };
    let unknown = lock("k", &none, false, held(true), false);
    assert_eq!(script.refused(unknown, NONE, b"abc"), ErrorCode::NotFound);
    // Nothing keeps a marker.
    none.tag = Some(VersionTag {
        id,
        marker: true,
        ..VersionTag::default()
    });
    let marker = lock("k", &none, false, held(true), false);
    assert_eq!(script.refused(marker, NONE, b"abc"), ErrorCode::BadRequest);
    let marker = VersionTag {
        marker: true,
        lock: held(true),
        ..VersionTag::default()
    };
    let marker = version("k", marker, true, b"");
    assert_eq!(script.refused(marker, NONE, b""), ErrorCode::BadRequest);
}

/// Tags and lists that are written at once: who comes second goes by what the first one wrote, not over it.
#[test]
fn who_writes_a_version_anew_names_what_was_found() {
    let mut script = Script::with(QUIET);
    let (id, _) = script.done(version("k", new(held(true)), true, b"abc"), NONE, b"abc");
    script.done(version("k", new(Lock::NONE), true, b"x"), NONE, b"x");
    let found = script.meta("k", Some(id));
    let anew = |attributes: &[u8]| {
        let mut meta = found.clone();
        meta.manifest.attributes = attributes.to_vec();
        lock("k", &meta, false, held(true), false)
    };
    script.done(anew(b"tags"), NONE, b"abc");
    assert_eq!(script.refused(anew(b"list"), NONE, b"abc"), LOST);
    let now = script.meta("k", Some(id));
    assert_eq!(now.manifest.attributes, b"tags");
    assert_eq!(named(&now), named(&found));
    // Its bytes are not among what may be another.
    let mut other = now;
    other.manifest.crc = crc32(b"abd");
    let other = lock("k", &other, false, held(true), false);
    assert_eq!(script.refused(other, NONE, b"abd"), LOST);
    assert_eq!(&script.look_at("k", Some(id)).unwrap().payload[..], b"abc");
}

#[test]
fn a_retention_is_made_less_by_nobody_but_who_may() {
    use RetentionMode::{Compliance, Governance};
    let mut script = Script::with(QUIET);
    script.done(version("k", new(Lock::NONE), true, b"abc"), NONE, b"abc");
    let mut to = |lock, bypass| script.relock("k", None, lock, bypass);
    assert_eq!(to(until(Governance, 5000), false), None);
    assert_eq!(to(until(Governance, 4999), false), Some(LOCKED));
    assert_eq!(to(Lock::NONE, false), Some(LOCKED));
    assert_eq!(to(until(Compliance, 6000), false), Some(LOCKED));
    assert_eq!(to(until(Governance, 3000), true), None);
    assert_eq!(to(until(Compliance, 3000), true), None);
    for bypass in [false, true] {
        assert_eq!(to(until(Compliance, 2999), bypass), Some(LOCKED));
        assert_eq!(to(until(Governance, 4000), bypass), Some(LOCKED));
        assert_eq!(to(held(true), bypass), Some(LOCKED));
    }
    assert_eq!(to(until(Compliance, 3001), false), None);
    script.wall_ms = 3001;
    assert_eq!(script.relock("k", None, Lock::NONE, false), None);
}

/// An object of a bucket that kept none is made the null version by its lock, and nothing takes its place then.
#[test]
fn the_null_version_that_is_locked_stays() {
    let mut script = Script::with(QUIET);
    let (plain, _) = script.done(put("k", b"abc"), NONE, b"abc");
    assert_eq!(script.relock("k", None, held(true), false), None);
    let tag = named(&script.meta("k", None));
    assert!(tag.null && tag.id == plain && tag.lock == held(true));
    let null = |marker| VersionTag {
        null: true,
        marker,
        ..VersionTag::default()
    };
    let replaced = version("k", null(false), true, b"new");
    assert_eq!(script.refused(replaced, NONE, b"new"), LOCKED);
    let marked = version("k", null(true), true, b"");
    assert_eq!(script.refused(marked, NONE, b""), LOCKED);
    // What the native client puts cannot be made the null version, and so it gets a name of its own.
    let (other, displaced) = script.done(put("k", b"other"), NONE, b"other");
    assert_eq!(displaced, None);
    let make_way = |tag| version("k", tag, true, b"other");
    let as_null = make_way(VersionTag::of_plain(other));
    assert_eq!(
        script.refused(as_null, Precondition::Version(other), b"other"),
        LOCKED
    );
    let own_name = VersionTag {
        id: other,
        ..VersionTag::default()
    };
    let wrong = VersionTag {
        id: plain,
        ..VersionTag::default()
    };
    assert_eq!(script.refused(make_way(wrong), NONE, b"other"), LOST);
    let (_, displaced) = script.done(make_way(own_name), NONE, b"other");
    assert_eq!(displaced, None);
    assert_eq!(named(&script.meta("k", None)), own_name);
    script.done(version("k", new(Lock::NONE), true, b"x"), NONE, b"x");
    for (id, bytes) in [(NULL_VERSION, &b"abc"[..]), (other, b"other")] {
        assert_eq!(&script.look_at("k", Some(id)).unwrap().payload[..], bytes);
    }
}

/// Of the null version that is kept and an object that is none yet, the lock of neither is taken for the other's.
#[test]
fn two_null_ones_and_a_lock() {
    let mut script = Script::with(QUIET);
    let null = VersionTag {
        null: true,
        ..VersionTag::default()
    };
    script.done(version("k", null, true, b"abc"), NONE, b"abc");
    script.done(put("k", b"abc"), NONE, b"abc");
    let hold = script.relock("k", None, held(true), false);
    assert_eq!(hold, Some(ErrorCode::NotKept));
}

#[test]
fn what_is_locked_keeps_its_bytes() {
    let mut script = Script::with(QUIET);
    let stripe = |attempt| Stripe {
        id: StripeId { writer: 3, attempt },
        pg: PgId(1),
        k: 2,
        m: 1,
        data_len: 100,
        shard_crcs: vec![1, 2, 3],
    };
    let other = |tag, stripe, crc| Op::PutVersion {
        bucket: "bucket".to_owned(),
        key: "k".to_owned(),
        tag,
        current: true,
        modified_ms: 0,
        manifest: Manifest::plain(100, crc, Body::Stripes(vec![stripe])),
    };
    let made = |tag, stripe| other(tag, stripe, 9);
    let kept = new(until(RetentionMode::Compliance, 5000));
    script.done(made(kept, stripe(1)), NONE, b"");
    let tag = named(&script.meta("k", None));
    let refused = script.refused(other(tag, stripe(2), 8), NONE, b"");
    assert_eq!(refused, LOCKED);
    // The same bytes are elsewhere if their stripes were moved: that is for who looks again.
    let refused = script.refused(made(tag, stripe(2)), NONE, b"");
    assert_eq!(refused, LOST);
    script.done(made(tag, stripe(1)), NONE, b"");
    // The same of one that is not current, and inline.
    let (id, _) = script.done(version("i", kept, true, b"abc"), NONE, b"abc");
    script.done(version("i", new(Lock::NONE), true, b"x"), NONE, b"x");
    let tag = named(&script.meta("i", Some(id)));
    let refused = script.refused(version("i", tag, false, b"abd"), NONE, b"abd");
    assert_eq!(refused, LOCKED);
    script.done(version("i", tag, false, b"abc"), NONE, b"abc");
}

/// What is current again has the lock that it had.
#[test]
fn a_lock_comes_back_with_its_version() {
    let mut script = Script::with(QUIET);
    let kept = until(RetentionMode::Governance, 5000);
    let (first, _) = script.done(version("k", new(kept), true, b"abc"), NONE, b"abc");
    let (second, _) = script.done(version("k", new(Lock::NONE), true, b"x"), NONE, b"x");
    let meta = script.meta("k", Some(first));
    let then = |lock| Then::Version {
        tag: VersionTag {
            lock,
            ..named(&meta)
        },
        seen: meta.version,
        modified_ms: meta.modified_ms,
        manifest: Manifest::plain(3, crc32(b"abc"), Body::Inline),
    };
    let without = remove("k", second, then(Lock::NONE), false);
    assert_eq!(script.refused(without, NONE, b"abc"), LOST);
    script.done(remove("k", second, then(kept), false), NONE, b"abc");
    assert_eq!(named(&script.meta("k", None)).lock, kept);
    let gone = remove("k", first, Then::Nothing, false);
    assert_eq!(script.refused(gone, NONE, b""), LOCKED);
}

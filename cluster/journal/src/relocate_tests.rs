//! Objects whose stripes are put elsewhere, asked of a chain that serves.

use ashlar_layout::ids::{PgId, Seq, StripeId};
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{
    Body, Manifest, NULL_VERSION, Op, Precondition, Stripe, Then, VersionTag,
};
use ashlar_layout::message::{ErrorCode, ObjectMeta, Reply};

use crate::api::Event;
use crate::replica_tests::{QUIET, Script, delete};

const NONE: Precondition = Precondition::None;
const LOST: ErrorCode = ErrorCode::PreconditionFailed;

fn striped(attempts: &[u64]) -> Manifest {
    let stripe = |attempt: &u64| Stripe {
        id: StripeId {
            writer: 1,
            attempt: *attempt,
        },
        pg: PgId(1),
        k: 2,
        m: 1,
        data_len: 100,
        shard_crcs: vec![1, 2, 3],
    };
    let stripes: Vec<Stripe> = attempts.iter().map(stripe).collect();
    let mut manifest = Manifest::plain(100 * stripes.len() as u64, 9, Body::Stripes(stripes));
    manifest.attributes = vec![5, 6];
    manifest
}

fn put(key: &str, manifest: Manifest) -> Op {
    Op::Put {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        manifest,
    }
}

fn version(tag: VersionTag, current: bool, manifest: Manifest) -> Op {
    Op::PutVersion {
        bucket: "bucket".to_owned(),
        key: "k".to_owned(),
        tag,
        current,
        modified_ms: 70,
        manifest,
    }
}

/// What was looked at is elsewhere by now.
fn relocate(meta: &ObjectMeta, current: bool, manifest: Manifest) -> Op {
    Op::Relocate {
        bucket: "bucket".to_owned(),
        key: "k".to_owned(),
        tag: meta.tag,
        seen: meta.version,
        current,
        modified_ms: meta.modified_ms,
        manifest,
    }
}

fn meta(script: &Script, id: Option<Seq>) -> ObjectMeta {
    script.look_at("k", id).unwrap().meta
}

#[test]
fn only_where_its_stripes_are_changes() {
    let mut script = Script::new();
    script.done(put("k", striped(&[1, 2])), NONE, b"");
    let before = meta(&script, None);
    let moved = relocate(&before, true, striped(&[1, 3]));
    let (seq, displaced) = script.done(moved.clone(), NONE, b"");
    assert_eq!(displaced.map(|it| it.body), Some(striped(&[2]).body));
    let expected = ObjectMeta {
        version: seq,
        manifest: striped(&[1, 3]),
        ..before.clone()
    };
    assert_eq!(meta(&script, None), expected);
    // Another one who looked at the same does nothing any more.
    assert_eq!(script.refused(moved, NONE, b""), LOST);
    let mut other = striped(&[1, 4]);
    other.attributes.push(7);
    let mut longer = striped(&[1, 4, 5]);
    longer.crc = 9;
    for wrong in [other, longer, striped(&[4])] {
        let refused = script.refused(relocate(&expected, true, wrong), NONE, b"");
        assert_eq!(refused, ErrorCode::BadRequest);
    }
    let inline = Manifest::plain(0, 0, Body::Inline);
    let refused = script.refused(relocate(&expected, true, inline), NONE, b"");
    assert_eq!(refused, ErrorCode::BadRequest);
    let (_, displaced) = script.done(delete("k"), NONE, b"");
    assert_eq!(displaced.map(|it| it.body), Some(striped(&[1, 3]).body));
    let gone = script.refused(relocate(&expected, true, striped(&[1, 6])), NONE, b"");
    assert_eq!(gone, ErrorCode::NotFound);
}

/// Of what is no version something else is remembered; it is as old as it was, and its bytes are the same.
#[test]
fn what_is_remembered_of_an_object_changes_and_not_its_time() {
    let mut script = Script::new();
    let inline = |note: u8, bytes: &[u8]| {
        let crc = ashlar_layout::crc::crc32(bytes);
        let mut manifest = Manifest::plain(bytes.len() as u64, crc, Body::Inline);
        manifest.attributes = vec![note];
        manifest
    };
    let noted = |note: u8| {
        let mut manifest = striped(&[1, 2]);
        manifest.attributes = vec![note];
        manifest
    };
    for (first, then, bytes) in [
        (inline(1, b"bytes"), inline(2, b"bytes"), &b"bytes"[..]),
        (inline(1, b""), inline(2, b""), b""),
        (noted(1), noted(2), b""),
    ] {
        script.done(put("k", first), NONE, bytes);
        let before = meta(&script, None);
        script.wall_ms += 1000;
        let again = relocate(&before, true, then.clone());
        let (seq, displaced) = script.done(again.clone(), NONE, bytes);
        assert!(displaced.is_none_or(|it| it.body == Body::Inline));
        let expected = ObjectMeta {
            version: seq,
            manifest: then,
            ..before
        };
        assert_eq!(meta(&script, None), expected);
        assert_eq!(script.refused(again, NONE, bytes), LOST);
        script.done(delete("k"), NONE, b"");
    }
    // Other bytes are another object.
    script.done(put("k", inline(1, b"bytes")), NONE, b"bytes");
    let now = meta(&script, None);
    for (wrong, bytes) in [
        (inline(2, b"other"), &b"other"[..]),
        (inline(2, b"longer"), b"longer"),
        (striped(&[3]), b""),
    ] {
        let refused = script.refused(relocate(&now, true, wrong), NONE, bytes);
        assert_eq!(refused, ErrorCode::BadRequest);
    }
    let unlike = script.refused(relocate(&now, true, inline(2, b"bytes")), NONE, b"bxtes");
    assert_eq!(unlike, ErrorCode::BadRequest);
    script.done(delete("k"), NONE, b"");
    // A version is written anew by what asks for its lock.
    script.done(
        version(VersionTag::default(), true, striped(&[1, 2])),
        NONE,
        b"",
    );
    let kept = meta(&script, None);
    let refused = script.refused(relocate(&kept, true, noted(3)), NONE, b"");
    assert_eq!(refused, ErrorCode::BadRequest);
}

/// What is moved is a manifest more in the journal: the room that is left is for deletes.
#[test]
fn nothing_is_moved_while_the_head_has_no_room() {
    let mut script = Script::new();
    script.done(put("k", striped(&[1, 2])), NONE, b"");
    let moved = relocate(&meta(&script, None), true, striped(&[1, 3]));
    script.world.tell(0, Event::Full { full: true });
    let refused = script.refused(moved.clone(), NONE, b"");
    assert_eq!(refused, ErrorCode::DeviceFull);
    script.world.tell(0, Event::Full { full: false });
    script.done(moved, NONE, b"");
}

#[test]
fn a_version_is_moved_wherever_it_stands() {
    let mut script = Script::with(QUIET);
    let new = VersionTag::default();
    let (first, _) = script.done(version(new, true, striped(&[1])), NONE, b"");
    let current = meta(&script, None);
    let (seq, displaced) = script.done(relocate(&current, true, striped(&[2])), NONE, b"");
    assert_eq!(displaced.map(|it| it.body), Some(striped(&[1]).body));
    for id in [None, Some(first)] {
        let now = meta(&script, id);
        assert_eq!((now.version, now.tag), (seq, current.tag), "{id:?}");
        assert_eq!((now.modified_ms, now.manifest), (70, striped(&[2])));
    }
    let stale = meta(&script, None);
    let (second, _) = script.done(version(new, true, striped(&[5])), NONE, b"");
    // It is not the current one any more: that is for who looks again.
    let refused = script.refused(relocate(&stale, true, striped(&[6])), NONE, b"");
    assert_eq!(refused, LOST);
    let old = meta(&script, Some(first));
    let (_, displaced) = script.done(relocate(&old, false, striped(&[7])), NONE, b"");
    assert_eq!(displaced.map(|it| it.body), Some(striped(&[2]).body));
    assert_eq!(meta(&script, Some(first)).manifest, striped(&[7]));
    assert_eq!(meta(&script, None).manifest, striped(&[5]));
    // Who makes it current again by what was there finds that it is elsewhere.
    let then = |it: &ObjectMeta| Op::DropVersion {
        bucket: "bucket".to_owned(),
        key: "k".to_owned(),
        id: second,
        then: Then::Version {
            tag: it.tag.unwrap(),
            seen: it.version,
            modified_ms: it.modified_ms,
            manifest: it.manifest.clone(),
        },
        bypass: false,
    };
    assert_eq!(script.refused(then(&old), NONE, b""), LOST);
    let now = meta(&script, Some(first));
    script.done(then(&now), NONE, b"");
    // Its own entry is older than the current one, and both are changed by who takes it for current.
    assert_eq!(
        script.refused(relocate(&now, false, striped(&[8])), NONE, b""),
        LOST
    );
    let now = meta(&script, None);
    script.done(relocate(&now, true, striped(&[8])), NONE, b"");
    for id in [None, Some(first)] {
        assert_eq!(meta(&script, id).manifest, striped(&[8]), "{id:?}");
    }
}

/// Tags, lists or a lock that are written anew by what was looked at would bring stripes back that are freed.
#[test]
fn who_writes_a_version_anew_leaves_it_where_it_is() {
    for current in [true, false] {
        let mut script = Script::with(QUIET);
        let new = VersionTag::default();
        let (id, _) = script.done(version(new, true, striped(&[1])), NONE, b"");
        if !current {
            script.done(version(new, true, striped(&[9])), NONE, b"");
        }
        let before = meta(&script, Some(id));
        script.done(relocate(&before, current, striped(&[2])), NONE, b"");
        let tag = before.tag.unwrap();
        let mut tagged = striped(&[1]);
        tagged.attributes = vec![8];
        let refused = script.refused(version(tag, current, tagged.clone()), NONE, b"");
        assert_eq!(refused, LOST, "current: {current}");
        let lock = Op::LockVersion {
            bucket: "bucket".to_owned(),
            key: "k".to_owned(),
            tag: VersionTag {
                lock: Lock {
                    hold: Some(true),
                    ..Lock::NONE
                },
                ..tag
            },
            seen: before.version,
            current,
            modified_ms: 70,
            manifest: striped(&[1]),
            bypass: false,
        };
        assert_eq!(script.refused(lock, NONE, b""), LOST, "current: {current}");
        tagged.body = striped(&[2]).body;
        script.done(version(tag, current, tagged.clone()), NONE, b"");
        assert_eq!(meta(&script, Some(id)).manifest, tagged);
    }
}

/// A locked version is moved like any other one, and stays locked.
#[test]
fn a_lock_keeps_no_stripe_in_its_place() {
    let mut script = Script::with(QUIET);
    let lock = Lock {
        hold: Some(true),
        ..Lock::NONE
    };
    let new = VersionTag {
        lock,
        ..VersionTag::default()
    };
    let (id, _) = script.done(version(new, true, striped(&[1])), NONE, b"");
    let before = meta(&script, None);
    script.done(relocate(&before, true, striped(&[2])), NONE, b"");
    let after = meta(&script, Some(id));
    assert_eq!(
        (after.tag.unwrap().lock, after.manifest),
        (lock, striped(&[2]))
    );
    let mut unlocked = meta(&script, None);
    unlocked.tag = Some(VersionTag {
        lock: Lock::NONE,
        ..after.tag.unwrap()
    });
    let refused = script.refused(relocate(&unlocked, true, striped(&[3])), NONE, b"");
    assert_eq!(refused, LOST);
}

/// Of two that come together one is first, and the other one is told so, though nothing of either is committed.
#[test]
fn two_that_come_together() {
    for moves_first in [true, false] {
        let mut script = Script::new();
        script.done(put("k", striped(&[1])), NONE, b"");
        let before = meta(&script, None);
        let moves = relocate(&before, true, striped(&[2]));
        let replaced = put("k", striped(&[3]));
        let (one, two) = match moves_first {
            true => (moves, replaced),
            false => (replaced, moves),
        };
        let (one, two) = (script.ask(one, NONE, b""), script.ask(two, NONE, b""));
        let freed = |reply| match reply {
            Reply::Committed { displaced, .. } => displaced.map(|it: Manifest| it.body),
            Reply::Error(error) => {
                assert_eq!(error.code, LOST);
                None
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(freed(script.answer(one)), Some(striped(&[1]).body));
        let second = moves_first.then(|| striped(&[2]).body);
        assert_eq!(freed(script.answer(two)), second);
        assert_eq!(meta(&script, None).manifest, striped(&[3]));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut script = Script::new();
    script.done(put("k", striped(&[1])), NONE, b"");
    let found = meta(&script, None);
    let mut nameless = found.clone();
    for id in [Seq(0), NULL_VERSION] {
        nameless.tag = Some(VersionTag {
            id,
            ..VersionTag::default()
        });
        let refused = script.refused(relocate(&nameless, true, striped(&[2])), NONE, b"");
        assert_eq!(refused, ErrorCode::BadRequest);
    }
    let timeless = ObjectMeta {
        modified_ms: 0,
        ..found.clone()
    };
    for op in [
        relocate(&found, false, striped(&[2])),
        relocate(&timeless, true, striped(&[2])),
    ] {
        assert_eq!(script.refused(op, NONE, b""), ErrorCode::BadRequest);
    }
}

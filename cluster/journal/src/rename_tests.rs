//! Objects that get another key, asked of a chain that serves.

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{PgId, Seq, StripeId};
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition, Stripe, VersionTag};
use ashlar_layout::message::{ErrorCode, Reply};
use ashlar_layout::slot::slot_of;

use crate::api::{Answer, Ask, ListParams};
use crate::replica_tests::{QUIET, Script, delete, put};
use crate::review_tests::version;

const NONE: Precondition = Precondition::None;
const LOST: ErrorCode = ErrorCode::PreconditionFailed;

/// A change that gives what was looked at another key.
fn rename(source: &str, key: &str, seen: Seq, manifest: Manifest) -> Op {
    Op::Rename {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        source: source.to_owned(),
        seen,
        modified_ms: 77,
        manifest,
    }
}

fn inline(bytes: &[u8]) -> Manifest {
    Manifest::plain(bytes.len() as u64, crc32(bytes), Body::Inline)
}

fn striped(attempt: u64) -> Manifest {
    let stripe = Stripe {
        id: StripeId { writer: 1, attempt },
        pg: PgId(1),
        k: 2,
        m: 1,
        data_len: 100,
        shard_crcs: vec![1, 2, 3],
    };
    Manifest::plain(100, 9, Body::Stripes(vec![stripe]))
}

fn put_of(key: &str, manifest: Manifest) -> Op {
    Op::Put {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        manifest,
    }
}

/// What stands under a key, and which entry wrote it.
fn at(script: &Script, key: &str) -> Option<(Seq, Manifest)> {
    match script.look(key) {
        Ok(looked) => Some((looked.meta.version, looked.meta.manifest)),
        Err(error) => {
            assert_eq!(error.code, ErrorCode::NotFound);
            None
        }
    }
}

fn keys(script: &Script) -> Vec<(String, u64)> {
    let params = ListParams {
        bucket: "bucket".to_owned(),
        max: 100,
        ..ListParams::default()
    };
    match script.world.peek(0, Ask::List(params)) {
        Ok(Answer::Page(page)) => {
            let entries = page.objects.into_iter();
            entries.map(|it| (it.key, it.version.0)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_object_is_under_one_key_and_then_under_another() {
    let mut script = Script::new();
    let (first, _) = script.done(put_of("a", striped(1)), NONE, b"");
    script.done(put_of("b", striped(2)), NONE, b"");
    let (moved, displaced) = script.done(rename("a", "b", first, striped(1)), NONE, b"");
    // What stood there is to be freed; of the object itself, nothing.
    assert_eq!(displaced, Some(striped(2)));
    assert_eq!(at(&script, "a"), None);
    assert_eq!(at(&script, "b"), Some((moved, striped(1))));
    assert_eq!(script.look("b").unwrap().meta.modified_ms, 77);
    assert_eq!(keys(&script), [("b".to_owned(), moved.0)]);
    let (back, displaced) = script.done(rename("b", "a", moved, striped(1)), NONE, b"");
    assert_eq!((displaced, at(&script, "b")), (None, None));
    assert_eq!(at(&script, "a"), Some((back, striped(1))));
    let (_, displaced) = script.done(delete("a"), NONE, b"");
    assert_eq!(displaced, Some(striped(1)));
}

#[test]
fn an_object_in_the_journal_is_carried_on() {
    for bytes in [&b"short"[..], &[7; 600], b""] {
        let mut script = Script::new();
        let (first, _) = script.done(put("a", bytes), NONE, bytes);
        let wrong = rename("a", "b", first, inline(bytes));
        let mut other = bytes.to_vec();
        other.push(1);
        let refused = script.refused(wrong.clone(), NONE, &other);
        assert_eq!(refused, ErrorCode::BadRequest);
        let (moved, displaced) = script.done(wrong, NONE, bytes);
        assert_eq!(displaced, None);
        let whole = |script: &Script| {
            let looked = script.look("b").unwrap();
            let node = script.world.reigning().unwrap();
            let read = looked.place.map(|place| {
                assert_eq!(place.seq, moved);
                let device = &script.world.nodes[usize::from(node)].device;
                let entry = device.read(place.at, place.len).unwrap();
                ashlar_layout::journal::Entry::decode(&entry)
                    .unwrap()
                    .inline
                    .to_vec()
            });
            read.unwrap_or_else(|| looked.payload.to_vec())
        };
        assert_eq!(whole(&script), bytes);
        // Everything is written out, and everybody begins anew.
        for node in 0..3 {
            script.world.nodes[node].replica.as_mut().unwrap().unwritten = 1 << 40;
        }
        script.done(put("other", b"x"), NONE, b"x");
        script.run(300);
        for node in 0..3 {
            script.world.crash(node);
        }
        for node in 0..3 {
            script.world.start(node);
        }
        script.run(3000);
        assert_eq!(at(&script, "a"), None);
        assert_eq!(at(&script, "b"), Some((moved, inline(bytes))));
        assert_eq!(whole(&script), bytes);
    }
}

#[test]
fn what_is_there_is_judged_under_both_keys() {
    let mut script = Script::new();
    let (first, _) = script.done(put("a", b"x"), NONE, b"x");
    let (there, _) = script.done(put("b", b"y"), NONE, b"y");
    let op = rename("a", "b", first, inline(b"x"));
    for (precondition, source) in [
        (Precondition::Absent, first),
        (Precondition::Version(first), first),
        (NONE, there),
        (NONE, Seq(first.0 - 1)),
    ] {
        let op = rename("a", "b", source, inline(b"x"));
        assert_eq!(script.refused(op, precondition, b"x"), LOST);
    }
    let gone = rename("c", "b", first, inline(b"x"));
    assert_eq!(script.refused(gone, NONE, b"x"), LOST);
    let none = rename("a", "c", first, inline(b"x"));
    assert_eq!(script.refused(none, Precondition::Present, b"x"), LOST);
    // Other bytes than it has, or the same elsewhere.
    let other = rename("a", "b", first, inline(b"z"));
    assert_eq!(script.refused(other, NONE, b"z"), ErrorCode::BadRequest);
    let elsewhere = rename("a", "b", first, striped(5));
    assert_eq!(script.refused(elsewhere, NONE, b""), ErrorCode::BadRequest);
    let same = rename("a", "a", first, inline(b"x"));
    assert_eq!(script.refused(same, NONE, b"x"), ErrorCode::BadRequest);
    assert_eq!(
        keys(&script),
        [("a".to_owned(), first.0), ("b".to_owned(), there.0)]
    );
    script.done(op, Precondition::Version(there), b"x");
    assert_eq!(at(&script, "a"), None);
}

#[test]
fn versions_have_no_other_keys() {
    let mut script = Script::with(QUIET);
    let (plain, _) = script.done(put("a", b"x"), NONE, b"x");
    let new = VersionTag::default();
    let marker = VersionTag {
        marker: true,
        ..new
    };
    let (kept, _) = script.done(version("v", new, true, b"x"), NONE, b"x");
    script.done(version("m", marker, true, b""), NONE, b"");
    for (source, key, seen) in [("v", "free", kept), ("a", "v", plain), ("a", "m", plain)] {
        let op = rename(source, key, seen, inline(b"x"));
        let refused = script.refused(op, NONE, b"x");
        assert_eq!(refused, ErrorCode::BadRequest, "{source} to {key}");
    }
    assert_eq!(at(&script, "a"), Some((plain, inline(b"x"))));
    assert_eq!(at(&script, "v"), Some((kept, inline(b"x"))));
}

/// Whatever is asked at once, each change finds what those before it made.
#[test]
fn changes_of_either_key_come_before_or_after() {
    let mut script = Script::new();
    let (first, _) = script.done(put("a", b"x"), NONE, b"x");
    let (there, _) = script.done(put("b", b"y"), NONE, b"y");
    // The source is overwritten, and that is not committed yet.
    let over = script.ask(put("a", b"new"), NONE, b"new");
    let late = script.ask(rename("a", "b", first, inline(b"x")), NONE, b"x");
    let Reply::Committed { seq: newer, .. } = script.answer(over) else {
        panic!("it is put")
    };
    let refused = script.answer(late);
    assert!(matches!(refused, Reply::Error(error) if error.code == LOST));
    assert_eq!(at(&script, "b"), Some((there, inline(b"y"))));
    // Two take the object: one of them gets it. What comes for the key that it had, comes behind.
    let one = script.ask(rename("a", "b", newer, inline(b"new")), NONE, b"new");
    let two = script.ask(rename("a", "c", newer, inline(b"new")), NONE, b"new");
    let again = script.ask(put("a", b"z"), Precondition::Absent, b"z");
    let over = script.ask(put("b", b"over"), NONE, b"over");
    let Reply::Committed { displaced, .. } = script.answer(one) else {
        panic!("it was first")
    };
    assert_eq!(displaced, Some(inline(b"y")));
    let two = script.answer(two);
    assert!(matches!(two, Reply::Error(error) if error.code == LOST));
    let Reply::Committed { seq: again, .. } = script.answer(again) else {
        panic!("nothing is there")
    };
    let Reply::Committed { seq, displaced } = script.answer(over) else {
        panic!("it is put")
    };
    assert_eq!(displaced, Some(inline(b"new")));
    assert_eq!(
        keys(&script),
        [("a".to_owned(), again.0), ("b".to_owned(), seq.0)]
    );
    // There and back at once: the second one cannot know what the first one made.
    let there = script.ask(rename("a", "d", again, inline(b"z")), NONE, b"z");
    let back = script.ask(rename("d", "a", again, inline(b"z")), NONE, b"z");
    assert!(matches!(script.answer(there), Reply::Committed { .. }));
    assert!(matches!(script.answer(back), Reply::Error(error) if error.code == LOST));
    assert_eq!(script.world.head().head.gates.len(), 0);
}

/// A bucket is not removed under an object that is on its way to another key of it.
#[test]
fn a_bucket_waits_for_it() {
    let mut script = Script::new();
    let (first, _) = script.done(put("a", b"x"), NONE, b"x");
    let moved = script.ask(rename("a", "b", first, inline(b"x")), NONE, b"x");
    let bucket = "bucket".to_owned();
    let removed = script.ask(Op::DeleteBucket { bucket }, NONE, b"");
    assert!(matches!(script.answer(moved), Reply::Committed { .. }));
    let refused = script.answer(removed);
    assert!(matches!(refused, Reply::Error(error) if error.code == ErrorCode::BucketNotEmpty));
}

#[test]
fn a_retry_is_answered_and_not_done_again() {
    let mut script = Script::new();
    let (first, _) = script.done(put("a", b"x"), NONE, b"x");
    script.done(put("b", b"y"), NONE, b"y");
    let op = rename("a", "b", first, inline(b"x"));
    let one = script.ask_as(900, op.clone(), NONE, b"x");
    let two = script.ask_as(900, op.clone(), NONE, b"x");
    let Reply::Committed { seq, displaced } = script.answer(one) else {
        panic!("it is done")
    };
    assert_eq!(displaced, Some(inline(b"y")));
    let displaced = None;
    assert_eq!(script.answer(two), Reply::Committed { seq, displaced });
    // Another object gets the key that it had: it stays.
    let (other, _) = script.done(put("a", b"x"), NONE, b"x");
    let three = script.ask_as(900, op, NONE, b"x");
    let displaced = None;
    assert_eq!(script.answer(three), Reply::Committed { seq, displaced });
    assert_eq!(at(&script, "a"), Some((other, inline(b"x"))));
    assert_eq!(at(&script, "b"), Some((seq, inline(b"x"))));
}

/// What was cached of either key is not confirmed any more, at whomever it is asked.
#[test]
fn witnesses_tell_of_both_keys() {
    let mut script = Script::new();
    let (first, _) = script.done(put("a", b"x"), NONE, b"x");
    let (moved, _) = script.done(rename("a", "b", first, inline(b"x")), NONE, b"x");
    script.run(50);
    let restarted = |script: &mut Script, node: u8| {
        script.world.crash(node);
        script.world.start(node);
    };
    for round in 0..2 {
        for node in 0..3 {
            for key in ["a", "b"] {
                let slot = slot_of("bucket", key);
                let (_, highest) = script.world.replica(node).witness(slot);
                assert!(highest >= moved, "{key} at {node}, round {round}");
            }
            let (_, other) = script.world.replica(node).witness(slot_of("bucket", "c"));
            assert!(other < moved || round > 0, "of that it knows nothing");
        }
        // As replay has it, too.
        restarted(&mut script, 1);
        restarted(&mut script, 2);
        script.run(500);
    }
}

/// A partition that has one of the keys only refuses, by what it holds, and nothing is done.
#[test]
fn both_keys_are_of_one_partition() {
    let mut script = Script::new();
    let (first, _) = script.done(put("a", b"x"), NONE, b"x");
    let (last, _) = script.done(put("z", b"y"), NONE, b"y");
    let head = script.world.reigning().unwrap();
    let bounds = |script: &mut Script, to: Option<&str>| {
        let to = to.map(|key| ("bucket".to_owned(), key.to_owned()));
        let head = script.world.nodes[usize::from(head)].replica.as_mut();
        head.unwrap().bounds.to = to;
    };
    bounds(&mut script, Some("m"));
    // The client is sent on to whoever has the key that the object is to get.
    let away = rename("a", "z", first, inline(b"x"));
    assert_eq!(script.refused(away, NONE, b"x"), ErrorCode::Moved);
    let from = rename("z", "b", last, inline(b"y"));
    assert_eq!(script.refused(from, NONE, b"y"), ErrorCode::Apart);
    let inside = rename("a", "l", first, inline(b"x"));
    script.done(inside, NONE, b"x");
    bounds(&mut script, None);
    let (moved, _) = script.done(rename("z", "b", last, inline(b"y")), NONE, b"y");
    assert_eq!(at(&script, "b"), Some((moved, inline(b"y"))));
    assert_eq!((at(&script, "a"), at(&script, "z")), (None, None));
}

//! What a head writes while not all nodes read everything, and what a replica does with what it cannot read.

use ashlar_layout::ids::{ClientId, DeviceNo, PartitionId, RequestNo, Seq, Term};
use ashlar_layout::journal::entry_version;
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{ChainBody, ChainMessage, ErrorCode, Reply};
use ashlar_layout::time::Instant;
use ashlar_layout::version::{
    ENTRY_VERSION, ENTRY_VERSION_LEAST, ENTRY_VERSION_RELOCATE, ENTRY_VERSION_RENAME,
};
use bytes::Bytes;

use crate::api::{Action, Event};
use crate::entry::{self, Decoded};
use crate::replica_tests::{Script, bare, config, persisted, put};

const NONE: Precondition = Precondition::None;

fn levels(script: &mut Script, entries: u16) {
    for node in 0..3 {
        script.world.tell(node, Event::Level { entries });
    }
}

fn renamed(script: &Script, to: &str, from: &str) -> Op {
    let found = script.look(from).unwrap().meta;
    Op::Rename {
        bucket: "bucket".to_owned(),
        key: to.to_owned(),
        source: from.to_owned(),
        seen: found.version,
        modified_ms: found.modified_ms,
        manifest: found.manifest,
    }
}

fn noted(script: &Script, key: &str) -> Op {
    let found = script.look(key).unwrap().meta;
    let mut manifest = found.manifest;
    manifest.attributes.push(1);
    Op::Relocate {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        tag: None,
        seen: found.version,
        current: true,
        modified_ms: found.modified_ms,
        manifest,
    }
}

#[test]
fn what_not_all_read_is_refused_and_done_when_they_do() {
    let mut script = Script::new();
    script.done(put("k", b"x"), NONE, b"x");
    let (rename, note) = (renamed(&script, "to", "k"), noted(&script, "k"));
    assert_eq!(entry_version(&rename), ENTRY_VERSION_RENAME);
    assert_eq!(entry_version(&note), ENTRY_VERSION_RELOCATE);
    levels(&mut script, ENTRY_VERSION_LEAST);
    let last = script.world.head().log.last();
    for op in [&rename, &note] {
        let asked = script.ask_as(77, op.clone(), NONE, b"x");
        let Reply::Error(error) = script.answer(asked) else {
            panic!("{op:?} is done");
        };
        assert_eq!(error.code, ErrorCode::NotYet);
        assert!(error.detail.contains("is being upgraded"), "{error}");
    }
    assert_eq!(script.world.head().log.last(), last, "nothing was written");
    // What all read is done meanwhile.
    script.done(put("other", b"y"), NONE, b"y");
    levels(&mut script, ENTRY_VERSION_RENAME);
    assert_eq!(script.refused(note, NONE, b"x"), ErrorCode::NotYet);
    // That it was refused is not held against the request.
    let asked = script.ask_as(77, rename, NONE, b"x");
    assert!(matches!(script.answer(asked), Reply::Committed { .. }));
    levels(&mut script, ENTRY_VERSION);
    let note = noted(&script, "to");
    script.done(note.clone(), NONE, b"x");
    // Whoever knows an older map writes less, and what was done stays so.
    levels(&mut script, ENTRY_VERSION_LEAST);
    assert_eq!(script.refused(note, NONE, b"x"), ErrorCode::NotYet);
    script.done(put("to", b"z"), NONE, b"z");
}

#[test]
fn a_done_request_is_done_whatever_may_be_written_now() {
    let mut script = Script::new();
    script.done(put("k", b"x"), NONE, b"x");
    let rename = renamed(&script, "to", "k");
    let asked = script.ask_as(5, rename.clone(), NONE, b"x");
    let first = script.answer(asked);
    levels(&mut script, ENTRY_VERSION_LEAST);
    let asked = script.ask_as(5, rename, NONE, b"x");
    let (Reply::Committed { seq, .. }, Reply::Committed { seq: again, .. }) =
        (first, script.answer(asked))
    else {
        panic!("it is refused");
    };
    assert_eq!(seq, again);
}

fn rename_at(seq: u64, term: Term) -> Bytes {
    let script = {
        let mut script = Script::new();
        script.done(put("k", b"x"), NONE, b"x");
        script
    };
    let decoded = Decoded {
        client: ClientId(9),
        request: RequestNo(1),
        time_ms: 1,
        op: renamed(&script, "to", "k"),
        inline: Bytes::from_static(b"x"),
    };
    entry::encode(Seq(seq), term, &decoded).unwrap()
}

#[test]
fn a_replica_that_is_sent_what_it_cannot_read_stops() {
    for (reads, stops) in [(ENTRY_VERSION_LEAST, true), (ENTRY_VERSION_RENAME, false)] {
        let mut config = config(2);
        config.reads = reads;
        let mut follower = bare(config);
        let (now, term) = (Instant(1), Term::new(1, DeviceNo(1)));
        let mut out = Vec::new();
        follower.hear(now, Event::Start {}, &mut out);
        let say = |body, payload| Event::Message {
            message: ChainMessage {
                partition: PartitionId(7),
                from: DeviceNo(1),
                to: DeviceNo(2),
                term,
                body,
            },
            payload,
        };
        follower.hear(now, say(ChainBody::Seal, Bytes::new()), &mut out);
        let token = out.iter().find_map(|action| match action {
            Action::Persist { token, .. } => Some(*token),
            _ => None,
        });
        follower.hear(now, persisted(token.unwrap(), 4096), &mut out);
        out.clear();
        let append = ChainBody::Append {
            prev: Seq(0),
            prev_term: Term(0),
            count: 1,
            committed: Seq(0),
            stamp: 1,
        };
        follower.hear(now, say(append, rename_at(1, term)), &mut out);
        let writes = |action: &Action| matches!(action, Action::Persist { .. });
        assert_eq!(follower.met_newer(), stops);
        assert_eq!(out.iter().any(writes), !stops, "{out:?}");
        let state = follower.status().state;
        assert_eq!(state.contains("start its node with"), stops, "{state}");
    }
}

#[test]
fn a_log_with_what_cannot_be_read_is_not_taken_for_damaged() {
    for (reads, stops) in [(ENTRY_VERSION_LEAST, true), (ENTRY_VERSION_RENAME, false)] {
        let mut config = config(2);
        config.reads = reads;
        let mut replica = bare(config);
        let term = Term::new(1, DeviceNo(1));
        replica.replay(&rename_at(1, term), 4096, 1);
        let mut out = Vec::new();
        replica.hear(Instant(1), Event::Start {}, &mut out);
        assert_eq!(replica.met_newer(), stops);
        assert!(!replica.log.tail_damaged());
        if stops {
            assert_eq!(out, [], "it does nothing");
            assert!(replica.is_stopped());
        }
    }
}

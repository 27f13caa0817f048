//! What a client may be told of the outcome of a change, and when nothing more is changed.

use ashlar_layout::ids::{ClientId, DeviceNo, PartitionId, RequestNo, Seq, Term};
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{ChainBody, ChainMessage, ErrorCode, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::{Action, Ask, Event};
use crate::replica_tests::{QUIET, Script, bare, config, delete, persisted, put};
use crate::sim::{Plan, limits};

fn code(reply: &Reply) -> Option<ErrorCode> {
    match reply {
        Reply::Error(error) => Some(error.code),
        _ => None,
    }
}

#[test]
fn a_retry_that_may_be_forgotten_is_not_done_again() {
    let plan = Plan {
        forgetful: true,
        ..QUIET
    };
    let mut script = Script::with(plan);
    let Reply::Committed { seq: first, .. } = script.ask_of(1, 1, None) else {
        panic!("refused")
    };
    // Two others push it out.
    for client in [2, 3] {
        let reply = script.ask_of(client, 1, None);
        assert!(matches!(reply, Reply::Committed { .. }));
    }
    for restart in [false, true] {
        if restart {
            script.world.crash(0);
            script.run(500);
        }
        let last = script.world.head().log.last();
        let reply = script.ask_of(1, 1, Some(Seq(0)));
        assert_eq!(code(&reply), Some(ErrorCode::OutcomeUnknown), "{reply:?}");
        let reply = script.ask_of(9, 1, Some(Seq(0)));
        assert_eq!(code(&reply), Some(ErrorCode::OutcomeUnknown), "{reply:?}");
        assert_eq!(script.world.head().log.last(), last, "it was done");
        let known = script.ask_of(3, 1, Some(Seq(0)));
        assert!(matches!(
            known,
            Reply::Committed {
                displaced: None,
                ..
            }
        ));
    }
    // It asked first when all that is forgotten was there already.
    let told = Seq(first.0 + 1);
    let reply = script.ask_of(1, 2, Some(told));
    assert!(matches!(reply, Reply::Committed { .. }), "{reply:?}");
}

#[test]
fn what_its_own_client_overtook_by_far_has_an_unknown_outcome() {
    let mut script = Script::new();
    for request in 2..=limits().requests as u64 + 2 {
        let reply = script.ask_of(1, request, None);
        assert!(matches!(reply, Reply::Committed { .. }));
    }
    let reply = script.ask_of(1, 1, None);
    assert_eq!(code(&reply), Some(ErrorCode::OutcomeUnknown), "{reply:?}");
}

#[test]
fn a_full_head_reads_on_and_commits_nothing_more() {
    let mut script = Script::new();
    script.done(put("old", b"x"), Precondition::None, b"x");
    let mut head = script.world.head().clone();
    let (now, committed, term) = (Instant(script.world.now), head.committed, head.term);
    let mut out = Vec::new();
    let event = |reply_to, op| Event::Propose {
        reply_to,
        term,
        client: ClientId(43),
        request: RequestNo(reply_to),
        retry: None,
        precondition: Precondition::None,
        op,
        inline: Bytes::new(),
        wall_ms: 5,
    };
    head.hear(now, event(1, put("k", b"")), &mut out);
    head.hear(now, event(2, delete("old")), &mut out);
    let tokens: Vec<u64> = out
        .drain(..)
        .filter_map(|action| match action {
            Action::Persist { token, .. } => Some(token),
            _ => None,
        })
        .collect();
    let (token, full) = (tokens[0], true);
    head.hear(now, Event::PersistFailed { token, full }, &mut out);
    let codes: Vec<_> = out
        .drain(..)
        .filter_map(|action| match action {
            Action::Reply { reply, .. } => code(&reply),
            _ => None,
        })
        .collect();
    assert_eq!(codes, [ErrorCode::PartitionUnavailable; 2], "not known");
    // The one behind it is durable here, and both are on the others.
    let token = tokens[1];
    head.hear(now, persisted(token, 1 << 20), &mut out);
    for from in [DeviceNo(2), DeviceNo(3)] {
        let message = ChainMessage {
            partition: PartitionId(7),
            from,
            to: head.config.me,
            term: head.term,
            body: ChainBody::Ack {
                durable: head.log.last(),
                stamp: now.0,
            },
        };
        let payload = Bytes::new();
        head.hear(now, Event::Message { message, payload }, &mut out);
    }
    assert_eq!(head.committed, committed);
    assert!(head.serving(now));
    let mut look = |key: &str| {
        let ask = Ask::Lookup {
            bucket: "bucket".to_owned(),
            key: key.to_owned(),
            id: None,
        };
        let mut out = Vec::new();
        head.hear(now, Event::Ask { reply_to: 9, ask }, &mut out);
        match out.pop() {
            Some(Action::Answer { result, .. }) => result,
            other => panic!("{other:?}"),
        }
    };
    assert!(look("old").is_ok());
    let error = look("k").unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    for (reply_to, op) in [(3, put("k", b"")), (4, delete("old"))] {
        out.clear();
        head.hear(now, event(reply_to, op), &mut out);
        let [Action::Reply { reply, .. }] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!(code(reply), Some(ErrorCode::DeviceFull));
    }
}

#[test]
fn a_follower_that_sealed_again_does_not_say_that_it_holds_nothing() {
    let mut follower = bare(config(2));
    let now = Instant(1);
    let mut out = Vec::new();
    follower.hear(now, Event::Start {}, &mut out);
    let say = |round, body, payload| Event::Message {
        message: ChainMessage {
            partition: PartitionId(7),
            from: DeviceNo(1),
            to: DeviceNo(2),
            term: Term::new(round, DeviceNo(1)),
            body,
        },
        payload,
    };
    let decoded = crate::entry::Decoded {
        client: ClientId(1),
        request: RequestNo(1),
        time_ms: 1,
        op: Op::TermStart,
        inline: Bytes::new(),
    };
    let entry = crate::entry::encode(Seq(1), Term::new(1, DeviceNo(1)), &decoded).unwrap();
    let append = ChainBody::Append {
        prev: Seq(0),
        prev_term: Term(0),
        count: 1,
        committed: Seq(0),
        stamp: 1,
    };
    let none = Bytes::new;
    let persist = |out: &mut Vec<Action>| {
        let token = out.iter().find_map(|action| match action {
            Action::Persist { token, .. } => Some(*token),
            _ => None,
        });
        out.clear();
        persisted(token.unwrap(), 4096)
    };
    follower.hear(now, say(1, ChainBody::Seal, none()), &mut out);
    let promised = persist(&mut out);
    follower.hear(now, promised, &mut out);
    follower.hear(now, say(1, append, entry), &mut out);
    let written = persist(&mut out);
    follower.hear(now, say(2, ChainBody::Seal, none()), &mut out);
    let promised = persist(&mut out);
    follower.hear(now, promised, &mut out);
    out.clear();
    follower.hear(now, written, &mut out);
    assert_eq!(out, [], "nothing of it is verified in this reign yet");
}

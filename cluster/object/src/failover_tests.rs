//! Changes across reigns: each is made at most once, and what is said of it is true.

use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, PartitionId, RequestNo, Seq, Term};
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{ErrorCode, Reply, Request};
use bytes::Bytes;

use crate::ask::Ask;
use crate::call::{Action, Answer, Event, Machine};
use crate::chain_model::{Model, manifest};
use crate::common::Tuning;
use crate::error::Code;
use crate::testing::{Mood, World, class, error};

fn tuning() -> Tuning {
    Tuning {
        unavailable_wait: Duration::from_millis(1500),
        ..Tuning::default()
    }
}

fn put(common: &crate::Common, key: &str, precondition: Precondition) -> (RequestNo, Request) {
    let number = common.next_request();
    let request = Request::Propose {
        partition: PartitionId(0),
        term: Term(0),
        client: common.client(),
        request: number,
        retry: None,
        precondition,
        op: Op::Put {
            bucket: "bucket".to_owned(),
            key: key.to_owned(),
            manifest: manifest(),
        },
    };
    (number, request)
}

fn ask(common: &std::sync::Arc<crate::Common>, key: &str, request: Request) -> Ask {
    let names = ("bucket", key);
    Ask::new(
        common.clone(),
        0,
        names,
        PartitionId(0),
        request,
        Bytes::new(),
    )
}

/// What became of the changes of one run.
#[derive(Debug, Default)]
struct Seen {
    committed: u32,
    refused: u32,
    uncertain: u32,
    reigns: u32,
    changes: u32,
}

fn run(seed: u64, seen: &mut Seen) {
    let mut model: Model<Ask> = Model::new(seed, tuning());
    let mut asked: Vec<RequestNo> = Vec::new();
    for _ in 0..60 {
        while model
            .machines
            .iter()
            .flatten()
            .filter(|a| !a.is_answered())
            .count()
            < 3
        {
            let key = format!("key{}", model.below(3));
            let precondition = match model.below(4) {
                0 => Precondition::Absent,
                1 => Precondition::Present,
                2 => model
                    .current(&key)
                    .map_or(Precondition::Absent, Precondition::Version),
                _ => Precondition::None,
            };
            let (number, request) = put(&model.common, &key, precondition);
            asked.push(number);
            let ask = ask(&model.common, &key, request);
            model.start(ask);
        }
        for _ in 0..40 {
            if model.below(20) == 0 {
                let key = format!("key{}", model.below(3));
                model.erase(&key);
            }
            model.step();
        }
    }
    // Let all of them end, then let everything arrive that is still on its way.
    model.calm = model.below(2) == 0;
    while model.machines.iter().flatten().any(|a| !a.is_answered()) {
        model.step();
    }
    model.recover();
    model.recover();
    for (machine, number) in model.machines.iter().zip(asked) {
        let done = model.done((model.common.client(), number));
        assert!(
            done.len() <= 1,
            "seed {seed}: request {number} was done twice: {done:?}"
        );
        let outcome = machine.as_ref().and_then(Ask::outcome).unwrap();
        match outcome {
            Ok(told) => {
                let Reply::Committed { seq, .. } = told.reply else {
                    panic!()
                };
                assert_eq!(done, [seq], "seed {seed}: request {number}");
                seen.committed += 1;
            }
            Err(untold) if untold.uncertain => {
                assert!(untold.error.is_uncertain());
                seen.uncertain += 1;
            }
            Err(untold) => {
                let text = &untold.error;
                assert_eq!(
                    done,
                    [],
                    "seed {seed}: request {number} was refused: {text}"
                );
                seen.refused += u32::from(text.code() == Code::PreconditionFailed);
            }
        }
    }
    seen.reigns += model.reigns;
    seen.changes += model.changes;
}

#[test]
fn changes_are_made_once_and_told_truly() {
    let mut seen = Seen::default();
    for seed in 1..=150 {
        run(seed, &mut seen);
    }
    // It all happened.
    assert!(seen.committed > 2000 && seen.refused > 500, "{seen:?}");
    assert!(
        seen.uncertain > 20 && seen.uncertain < seen.committed / 4,
        "{seen:?}"
    );
    assert!(seen.reigns > 500 && seen.changes > 200, "{seen:?}");
}

/// What one machine sends, handled by hand.
struct Hand {
    ask: Ask,
    now: ashlar_layout::time::Instant,
    out: Vec<Action>,
}

impl Hand {
    fn event(&mut self, event: Event) {
        self.ask.on_event(self.now, event, &mut self.out);
    }

    /// The proposal that went out last: its call, term and retry.
    fn proposed(&mut self) -> Option<(crate::CallId, DeviceNo, Term, Option<Seq>)> {
        let out = std::mem::take(&mut self.out);
        let mut proposals = out.into_iter().filter_map(|action| match action {
            Action::Send {
                call,
                to,
                request: Request::Propose { term, retry, .. },
                ..
            } => Some((call, to, term, retry)),
            _ => None,
        });
        let last = proposals.next();
        assert!(proposals.next().is_none(), "one attempt at a time");
        last
    }

    fn answer(&mut self, call: crate::CallId, answer: Answer) {
        self.event(Event::Answer { call, answer });
    }

    fn office(&mut self, round: u32, head: u32, committed: u64) {
        let view = ashlar_layout::message::ChainView {
            term: Term::new(round, DeviceNo(head)),
            serving: true,
            committed: Seq(committed),
            config: 1,
            members: vec![DeviceNo(1), DeviceNo(2), DeviceNo(3)],
        };
        let common = self.ask_common();
        common
            .heads()
            .heard(self.now, PartitionId(0), DeviceNo(head), &view);
        self.now = self.now + Duration::from_millis(25);
        self.event(Event::Deadline);
    }

    fn ask_common(&self) -> std::sync::Arc<crate::Common> {
        self.ask.common()
    }
}

fn hand() -> Hand {
    let world = World::new(1, 6, class(4, 2), tuning());
    let (_, request) = put(&world.common, "key", Precondition::Absent);
    let ask = ask(&world.common, "key", request);
    let mut hand = Hand {
        ask,
        now: world.now,
        out: Vec::new(),
    };
    hand.event(Event::Start);
    assert_eq!(hand.proposed(), None, "first it asks who the head is");
    hand.office(5, 1, 40);
    hand
}

fn lost() -> Answer {
    Answer::Lost {
        detail: "broken".to_owned(),
    }
}

#[test]
fn a_refusal_in_a_later_reign_is_final() {
    let mut hand = hand();
    let (call, to, term, retry) = hand.proposed().unwrap();
    assert_eq!(
        (to, term, retry),
        (DeviceNo(1), Term::new(5, DeviceNo(1)), None)
    );
    hand.answer(call, lost());
    assert_eq!(hand.proposed(), None, "its head is doubted");
    hand.office(6, 2, 44);
    let (call, to, _, retry) = hand.proposed().unwrap();
    assert_eq!(
        (to, retry),
        (DeviceNo(2), Some(Seq(40))),
        "told before the first attempt"
    );
    hand.answer(
        call,
        error(ErrorCode::PreconditionFailed, "there is one".to_owned()),
    );
    let untold = hand.ask.outcome().unwrap().clone().unwrap_err();
    assert_eq!(
        (untold.uncertain, untold.error.code()),
        (false, Code::PreconditionFailed)
    );
}

#[test]
fn a_refusal_in_the_same_reign_is_not() {
    let mut hand = hand();
    let (call, ..) = hand.proposed().unwrap();
    hand.answer(call, lost());
    hand.office(5, 1, 44);
    let (call, _, _, retry) = hand.proposed().unwrap();
    assert_eq!(retry, Some(Seq(40)));
    hand.answer(
        call,
        error(ErrorCode::PreconditionFailed, "there is one".to_owned()),
    );
    let untold = hand.ask.outcome().unwrap().clone().unwrap_err();
    assert_eq!(
        (untold.uncertain, untold.error.code()),
        (true, Code::OutcomeUnknown)
    );
}

#[test]
fn an_attempt_that_was_refused_for_its_reign_did_nothing_but_those_before_it_may_have() {
    let mut hand = hand();
    let (call, ..) = hand.proposed().unwrap();
    hand.answer(call, error(ErrorCode::NotHead, "not I".to_owned()));
    hand.office(6, 2, 44);
    let (call, _, _, retry) = hand.proposed().unwrap();
    assert_eq!(retry, None, "nothing was done");
    hand.answer(call, lost());
    hand.office(7, 3, 44);
    let (call, _, _, retry) = hand.proposed().unwrap();
    assert_eq!(retry, Some(Seq(40)));
    hand.answer(call, error(ErrorCode::NotHead, "not I".to_owned()));
    hand.office(8, 1, 44);
    let (_, _, _, retry) = hand.proposed().unwrap();
    assert_eq!(retry, Some(Seq(40)), "the second attempt is still in doubt");
}

#[test]
fn only_committed_is_heard_of_an_attempt_that_was_given_up() {
    for commits in [false, true] {
        let mut hand = hand();
        let (first, ..) = hand.proposed().unwrap();
        // A newer reign is heard of while the first attempt is under way.
        hand.office(6, 2, 44);
        let (second, ..) = hand.proposed().unwrap();
        if commits {
            let reply = Reply::Committed {
                seq: Seq(41),
                displaced: None,
            };
            let (payload, payload_crc) = (Bytes::new(), 0);
            let answer = Answer::Reply {
                reply,
                payload,
                payload_crc,
            };
            hand.answer(first, answer);
            assert!(hand.ask.outcome().unwrap().is_ok());
        } else {
            hand.answer(
                first,
                error(ErrorCode::PreconditionFailed, "late".to_owned()),
            );
            assert_eq!(hand.ask.outcome(), None);
            hand.answer(second, error(ErrorCode::Busy, "full".to_owned()));
            assert_eq!(hand.ask.outcome(), None);
        }
    }
}

/// How long a client that has just written is without a head, when another one serves after so long.
fn gap(mood: Mood, serves_after: Duration) -> Duration {
    let mut world = World::new(3, 6, class(4, 2), Tuning::default());
    let write = |world: &mut World| {
        let (_, request) = put(&world.common, "key", Precondition::None);
        let mut ask = ask(&world.common, "key", request);
        world.start(&mut ask);
        ask
    };
    for _ in 0..40 {
        let mut ask = write(&mut world);
        world.settle(&mut ask);
        ask.outcome().unwrap().as_ref().unwrap();
    }
    world.take_deliveries();
    world.moods.insert(DeviceNo(1), mood);
    world.term = Term::new(1, DeviceNo(9));
    let serves = world.now + serves_after;
    let mut ask = write(&mut world);
    while !ask.is_answered() {
        assert!(world.step(&mut ask), "it stands still");
        if world.now >= serves {
            world.term = Term::new(2, DeviceNo(2));
        }
    }
    ask.outcome().unwrap().as_ref().unwrap();
    world.now.since(serves)
}

#[test]
fn a_client_goes_on_soon_after_a_new_head_serves() {
    for mood in [Mood::Dead, Mood::Mute, Mood::Hangs] {
        for millis in [30, 60, 150, 300, 900] {
            let gap = gap(mood, Duration::from_millis(millis));
            let most = Duration::from_millis(10);
            assert!(gap <= most, "{mood:?}, {millis} ms: {gap:?}");
        }
    }
}

#[test]
fn many_that_wait_poll_no_more_than_one() {
    let mut world = World::new(4, 6, class(4, 2), Tuning::default());
    world.term = Term(0);
    let mut asks: Vec<Ask> = (0..100)
        .map(|_| {
            let (_, request) = put(&world.common, "key", Precondition::None);
            ask(&world.common, "key", request)
        })
        .collect();
    for ask in &mut asks {
        world.start(ask);
    }
    let until = world.now + Duration::from_secs(1);
    let mut polls = world.polls;
    while world.now < until {
        let next = asks
            .iter()
            .filter_map(Machine::next_deadline)
            .min()
            .unwrap();
        world.now = next;
        for ask in &mut asks {
            if ask.next_deadline().is_some_and(|at| at <= next) {
                world.event(ask, Event::Deadline);
            }
        }
    }
    polls = world.polls - polls;
    // 200 rounds of three members.
    assert!((300..=603).contains(&polls), "{polls}");
}

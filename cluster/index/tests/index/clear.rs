//! An index that is damaged is cleared and learns the map anew; a crash at any step leaves the one or the other.

use ashlar_cluster_index::{Change, Index, IndexError, Item, Opening, Output, Question, Range};
use ashlar_layout::ids::Seq;
use ashlar_layout::root::Root;
use bytes::Bytes;

use crate::rig::{DEVICE, ME, Rig, config, looked_at, put, small};
use crate::work::{Contents, contents};

const KEYS: u64 = 150;

fn change(seq: u64) -> Change {
    match seq {
        1 => Change::PutBucket {
            bucket: "bucket".to_owned(),
            created_ms: 1,
        },
        _ => put("bucket", &format!("key-{:03}", seq * 7 % KEYS), seq),
    }
}

fn filled(seed: u64, last: u64) -> Rig {
    let mut rig = Rig::new(seed, small(), 64 << 10);
    for seq in 1..=last {
        rig.apply(seq, change(seq));
    }
    rig.freeze();
    rig.settle();
    rig
}

fn items(rig: &Rig) -> Vec<Item> {
    looked_at(ME, &rig.index, &rig.device).unwrap()
}

fn root(rig: &Rig) -> Root {
    let (_, bytes) = &rig.device.roots[&ME];
    Root::decode(bytes, DEVICE, config(1, small()).partition).unwrap()
}

/// Takes in another replica's entries, with so many steps at most; whether it came to the end, and all is durable.
fn learn(rig: &mut Rig, items: &[Item], at: Seq, steps: &mut u64) -> bool {
    let mut wait = |rig: &mut Rig| {
        *steps = steps.saturating_sub(1);
        *steps > 0 && rig.step()
    };
    for item in items {
        let change = item.change().unwrap();
        while rig.index.ingest(item.version, change.clone()).is_err() {
            if rig.index.wants_freeze() {
                freeze(rig);
            } else if !wait(rig) {
                return false;
            }
        }
        if rig.index.wants_freeze() {
            freeze(rig);
        }
    }
    rig.index.ingested(at);
    while !freeze(rig) {
        if !wait(rig) {
            return false;
        }
    }
    while wait(rig) {}
    *steps > 0
}

/// What the owner needs even if all else is lost goes along.
fn freeze(rig: &mut Rig) -> bool {
    let mut out = Vec::new();
    let promise = Bytes::from_static(b"a promise");
    let frozen = rig.index.freeze(promise, &mut out);
    rig.give(out);
    frozen
}

fn contents_of(rig: &Rig) -> Contents {
    contents(&items(rig))
}

#[test]
fn a_cleared_index_learns_the_map_anew() {
    let teacher = filled(1, 900);
    let lesson = items(&teacher);
    let (mut old, mut new, mut between) = (0, 0, 0);
    for stop in 0.. {
        // Somewhere in the midst of flushes and merges; a page is rotten.
        let mut rig = filled(2 + stop % 3, 600);
        for seq in 601..=700 {
            rig.apply(seq, change(seq));
        }
        rig.freeze();
        for _ in 0..stop % 11 {
            rig.step();
        }
        let durable = rig.index.covered();
        let chunk = root(&rig).runs[0].chunks[0];
        let mut out = Vec::new();
        let waiting = rig.ask(Question::Empty("bucket".to_owned()), None);
        rig.index.clear(&mut out);
        rig.give(out);
        rig.device.rot(&chunk, 99);
        if let ashlar_cluster_index::Answer::Pending(id) = waiting {
            assert_eq!(rig.done.remove(&id), Some(Err(IndexError::Cleared)));
        }
        assert_eq!((rig.index.applied(), rig.index.covered()), (Seq(0), Seq(0)));
        assert!(items(&rig).is_empty());
        let empty = rig.answer(Question::Empty("bucket".to_owned()), None);
        assert_eq!(empty, Ok(Output::Empty(true)));
        // It learns, and the power goes somewhere on the way.
        let over = learn(&mut rig, &lesson, Seq(900), &mut (stop + 1));
        if over {
            assert_eq!(contents_of(&rig), contents(&lesson));
            rig.device.check_use(ME, &rig.index.live());
            assert!(rig.damaged.is_empty(), "{:?}", rig.damaged);
        }
        let told = rig.index.covered();
        match rig.crash() {
            Ok(attachment) if rig.index.covered() == Seq(900) => {
                assert_eq!(attachment, Bytes::from_static(b"a promise"));
                assert_eq!(contents_of(&rig), contents(&lesson));
                new += 1;
            }
            // Half of it: nothing, but for what the owner gave along.
            Ok(attachment) if rig.index.covered() == Seq(0) => {
                assert_eq!(attachment, Bytes::from_static(b"a promise"));
                assert!(items(&rig).is_empty());
                between += 1;
            }
            // As it was before, damage and all.
            _ => {
                assert!(told == Seq(0) && rig.index.covered() >= durable);
                old += 1;
            }
        }
        if over {
            break;
        }
    }
    assert!(old > 0 && between > 0 && new > 0, "{old} {between} {new}");
}

#[test]
fn what_is_pinned_stays_so_until_the_next_root() {
    let mut rig = filled(5, 600);
    let pins = rig.index.pins();
    assert!(pins.len() > 20);
    let snapshot = rig.index.snapshot().unwrap();
    let mut out = Vec::new();
    rig.index.clear(&mut out);
    rig.give(out);
    assert_eq!(rig.index.pins(), pins);
    rig.settle();
    assert_eq!(rig.index.pins(), pins, "and no root was written meanwhile");
    let lesson = items(&filled(6, 100));
    assert!(learn(&mut rig, &lesson[..20], Seq(100), &mut 1000));
    assert!(rig.index.pins().len() < 10);
    let empty = Question::Empty("bucket".to_owned());
    let seq = snapshot.seq();
    let gone = rig.answer(empty, Some(snapshot));
    assert_eq!(gone, Err(IndexError::NoSnapshot { seq }));
}

#[test]
fn one_that_cannot_be_opened_is_cleared_as_well() {
    let lesson = items(&filled(1, 300));
    let mut rig = filled(7, 600);
    let run = root(&rig).runs[0].clone();
    let top = run.top.grain as usize * 4096;
    rig.device.rot(&run.chunks[0], top + 99);
    let (generation, bytes) = rig.device.roots[&ME].clone();
    rig.device.crash();
    let mut opening = Opening::new(config(9, small()), Some(&bytes)).unwrap();
    let mut out = Vec::new();
    let mut opened = opening.start(&mut out);
    let mut late = Vec::new();
    while opened.is_none() {
        out.drain(..)
            .for_each(|read| drop(rig.device.submit(ME, read)));
        let (_, event) = rig.device.complete().unwrap();
        opened = opening.on_event(event.clone(), &mut out);
        late = vec![event];
    }
    assert!(matches!(opened, Some(Err(IndexError::Corrupt { .. }))));
    rig.index = opening.cleared();
    // Reads that are under way still are answered to it, and are nothing to it.
    late.into_iter().for_each(|event| rig.event(event));
    rig.settle();
    rig.device.check_use(ME, &rig.index.live());
    assert!(learn(&mut rig, &lesson, Seq(300), &mut 10_000));
    assert!(rig.device.roots[&ME].0 > generation);
    rig.crash().unwrap();
    assert_eq!(contents_of(&rig), contents(&lesson));
    rig.device.check_use(ME, &rig.index.live());

    // And one whose root is none.
    let mut index = Index::new(config(10, small()));
    index.supersede(generation);
    let mut out = Vec::new();
    index.apply(Seq(1), change(1)).unwrap();
    assert!(index.freeze(Bytes::new(), &mut out));
    rig.index = index;
    rig.device.keep_only(ME, &[]);
    let before = rig.device.roots.remove(&ME).unwrap();
    assert!(before.0 > generation);
    rig.device.roots.insert(ME, (generation, before.1));
    rig.give(out);
    rig.settle();
    assert_eq!(rig.device.roots[&ME].0, generation + 1);
}

#[test]
fn a_cleared_index_may_be_cleared_again_and_forked() {
    let mut rig = filled(8, 600);
    for seq in 601..=700 {
        rig.apply(seq, change(seq));
    }
    rig.freeze();
    for step in 0..40 {
        let mut out = Vec::new();
        rig.index.clear(&mut out);
        rig.give(out);
        learn(&mut rig, &items(&filled(1, 30)), Seq(30), &mut (step % 7));
    }
    rig.settle();
    rig.device.check_use(ME, &rig.index.live());
    let fork = rig.index.fork(config(50, small()), &Range::default(), &[]);
    let items = looked_at(ME, &fork, &rig.device).unwrap();
    assert_eq!(contents(&items), contents_of(&rig));
}

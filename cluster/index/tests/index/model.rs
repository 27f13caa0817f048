//! Random histories against the plain map: questions of the present and of snapshots, while tables are
//! written out and runs merged; with crashes in between.

use std::collections::BTreeMap;

use ashlar_cluster_index::{Answer, Change, Index, Item, List, Output, Question, Snapshot};
use ashlar_layout::ids::Seq;

use crate::device::Dice;
use crate::rig::{ME, Rig, attachment, looked_at, object, objects, put, restored, small};
use crate::work::{Model, as_before_amending};

const PARTS: [&str; 9] = [
    "a",
    "b",
    "/",
    "aa/",
    "é",
    "\u{10ffff}",
    "a/b/",
    "\u{d7ff}",
    "-long-part-of-a-key-",
];
const BUCKETS: [&str; 3] = ["abc", "abc.d", "bucket"];

pub fn key(dice: &mut Dice) -> String {
    let parts = 1 + dice.below(4);
    let mut key: String = (0..parts)
        .map(|_| PARTS[dice.below(PARTS.len() as u64) as usize])
        .collect();
    if dice.once_in(3) {
        key.push_str(&format!("{:03}", dice.below(200)));
    }
    key
}

pub fn bucket(dice: &mut Dice) -> String {
    BUCKETS[dice.below(3) as usize].to_owned()
}

pub fn change(dice: &mut Dice, seq: u64) -> Change {
    let (bucket, key) = (bucket(dice), key(dice));
    match dice.below(20) {
        0 => Change::Nothing,
        1 => Change::PutBucket {
            bucket,
            created_ms: seq,
        },
        2 if dice.once_in(4) => Change::DropBucket { bucket },
        3..=7 => Change::Delete { bucket, key },
        _ => put(&bucket, &key, seq),
    }
}

pub fn question(dice: &mut Dice) -> Question {
    match dice.below(8) {
        0 => Question::Bucket(bucket(dice)),
        1 => Question::Empty(bucket(dice)),
        2 => Question::Buckets {
            after: if dice.once_in(2) {
                bucket(dice)
            } else {
                String::new()
            },
            max: dice.below(4) as u32,
        },
        3 | 4 => {
            let names = (0..1 + dice.below(4)).map(|_| (bucket(dice), key(dice)));
            objects(names.collect())
        }
        _ => {
            let prefix = if dice.once_in(2) {
                String::new()
            } else {
                PARTS[dice.below(9) as usize].to_owned()
            };
            let after = match dice.below(3) {
                0 => String::new(),
                1 => key(dice),
                _ => format!("{prefix}{}", key(dice)),
            };
            Question::List(List {
                bucket: bucket(dice),
                prefix,
                delimiter: ["", "/", "a/", "-"][dice.below(4) as usize].to_owned(),
                after,
                max: [1, 3, 10, 1000][dice.below(4) as usize],
            })
        }
    }
}

/// All entries of a snapshot, page by page.
fn all_items(rig: &mut Rig, at: Option<Snapshot>, max_bytes: usize) -> Vec<(Vec<u8>, u64)> {
    let mut all = Vec::new();
    let mut after = Vec::new();
    loop {
        let question = Question::Items { after, max_bytes };
        let Ok(Output::Items { items, more }) = rig.answer(question, at) else {
            panic!("no items");
        };
        assert!(!more || !items.is_empty());
        after = items
            .last()
            .map(|item| item.key.clone())
            .unwrap_or_default();
        all.extend(items.into_iter().map(|item| (item.key, item.version.0)));
        if !more {
            return all;
        }
    }
}

/// A question that waits: what it is, of which state, and how many payloads had been put anew.
type Waiting = BTreeMap<u64, (Question, u64, usize)>;

fn check(rig: &mut Rig, model: &Model, asked: &mut Waiting) {
    for (id, result) in std::mem::take(&mut rig.done) {
        let (question, at, amended) = asked.remove(&id).expect("asked once, answered once");
        let (mut says, mut expected) = (result.unwrap(), model.says(&question, at));
        if amended != model.amended.len() {
            says = as_before_amending(says);
            expected = as_before_amending(expected);
        }
        assert_eq!(says, expected, "{question:?} at {at}");
    }
}

/// The payload of some object is put anew.
pub fn amend(dice: &mut Dice, index: &mut Index, model: &mut Model) {
    let placed = model.placed();
    let Some((name, seq)) = placed.get(dice.below(placed.len() as u64) as usize) else {
        return;
    };
    let (bucket, key) = name.clone();
    let object = restored(*seq);
    let put = Change::Put {
        bucket,
        key,
        object,
    };
    if index.amend(Seq(*seq), put).is_ok() {
        model.amended.insert((*seq, name.clone()), false);
    }
}

/// What a crash left of the payloads that were put anew: those that are durable for certain, and any others.
pub fn settle_amended(model: &mut Model, items: &[Item]) {
    for ((seq, name), sure) in std::mem::take(&mut model.amended) {
        if model.newest(&name) != Some(seq) {
            continue;
        }
        let item = items.iter().find(|item| match item.change() {
            Ok(Change::Put { bucket, key, .. }) => (bucket, key) == name,
            _ => false,
        });
        let Ok(Change::Put { object: now, .. }) = item.unwrap().change() else {
            panic!("{item:?}");
        };
        assert_eq!(item.unwrap().version.0, seq);
        if now == restored(seq) {
            model.amended.insert((seq, name), true);
        } else {
            assert!(!sure, "{name:?} was durable");
            assert_eq!(now, object(seq));
        }
    }
}

fn history(seed: u64, entries: u64, cache: usize, crashes: bool) {
    let mut dice = Dice::new(seed + 77);
    let mut rig = Rig::new(seed, small(), cache);
    let mut model = Model::default();
    let mut snapshots: Vec<Snapshot> = Vec::new();
    let mut asked = Waiting::new();
    while model.last() < entries {
        match dice.below(10) {
            0..=4 => {
                let change = change(&mut dice, model.last() + 1);
                model.apply(change.clone());
                rig.apply(model.last(), change);
            }
            5 | 6 => {
                let question = question(&mut dice);
                let at = snapshots
                    .get(dice.below(1 + snapshots.len() as u64) as usize)
                    .copied();
                let seq = at.map_or(model.last(), |at| at.seq().0);
                match rig.ask(question.clone(), at) {
                    Answer::Ready(result) => {
                        assert_eq!(
                            result.unwrap(),
                            model.says(&question, seq),
                            "{question:?} at {seq}"
                        );
                    }
                    Answer::Pending(id) => {
                        let waiting = (question, seq, model.amended.len());
                        assert!(asked.insert(id, waiting).is_none());
                    }
                    Answer::Busy => assert!(asked.len() >= 60),
                }
            }
            7 if snapshots.len() < 5 && dice.once_in(8) => {
                snapshots.extend(rig.index.snapshot());
            }
            8 if dice.once_in(8) && !snapshots.is_empty() => {
                let which = dice.below(snapshots.len() as u64) as usize;
                rig.index.release(snapshots.swap_remove(which));
            }
            8 if dice.once_in(4) => amend(&mut dice, &mut rig.index, &mut model),
            9 if crashes && dice.once_in(150) => {
                snapshots.clear();
                asked.clear();
                let durable = rig.index.covered();
                let attached = rig.crash().unwrap();
                let covered = rig.index.covered();
                assert!(
                    covered >= durable,
                    "{covered:?} was {durable:?} before the crash"
                );
                assert_eq!(
                    attached,
                    if covered.0 == 0 {
                        Default::default()
                    } else {
                        attachment(covered.0)
                    }
                );
                for (seq, change) in model.tail(covered.0) {
                    rig.apply(seq, change);
                }
                let items = looked_at(ME, &rig.index, &rig.device).unwrap();
                settle_amended(&mut model, &items);
            }
            9 if dice.once_in(200) => {
                rig.settle();
                if rig.freeze() {
                    rig.settle();
                    model.amended.values_mut().for_each(|sure| *sure = true);
                }
            }
            _ => {
                for _ in 0..dice.below(6) {
                    rig.step();
                }
            }
        }
        check(&mut rig, &model, &mut asked);
    }
    let stats = rig.index.stats();
    for at in snapshots.iter().map(|at| Some(*at)).chain([None]) {
        let seq = at.map_or(model.last(), |at| at.seq().0);
        let items = all_items(&mut rig, at, 700);
        assert!(items.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(items.len(), model.count(seq));
        assert!(items.iter().all(|(_, version)| *version <= seq));
    }
    rig.settle();
    check(&mut rig, &model, &mut asked);
    assert!(asked.is_empty(), "unanswered: {asked:?}");
    rig.device.check_use(ME, &rig.index.live());
    assert!(rig.damaged.is_empty());
    assert!(
        stats.bytes_merged > 0 || entries < 1000 || crashes,
        "{stats:?}"
    );
    // All of it once more, with the values.
    for names in model.names().chunks(500) {
        let names = objects(names.to_vec());
        let says = rig.answer(names.clone(), None).unwrap();
        assert_eq!(says, model.says(&names, model.last()));
    }
}

#[test]
fn histories_with_a_roomy_cache() {
    for seed in 1..=12 {
        history(seed, 4000, 1 << 20, false);
    }
}

#[test]
fn histories_with_a_cache_of_two_pages() {
    for seed in 100..=112 {
        history(seed, 3000, 16 << 10, false);
    }
}

#[test]
fn histories_without_a_cache() {
    for seed in 200..=204 {
        history(seed, 2000, 0, false);
    }
}

#[test]
fn histories_with_crashes() {
    for seed in 300..=324 {
        history(seed, 3000, 64 << 10, true);
    }
}

mod random {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_history(seed in any::<u32>(), cache in 0usize..100_000, crashes in any::<bool>()) {
            super::history(u64::from(seed), 1500, cache, crashes);
        }
    }
}

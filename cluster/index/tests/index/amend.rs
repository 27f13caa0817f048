//! Payloads: in the index, in the journal, and put anew; and the extents of the journal that are pinned for them.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use ashlar_cluster_index::{Change, Index, Limits, Object, Output};
use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::limits::INLINE_MAX;
use ashlar_layout::manifest::{Body, Manifest};
use ashlar_layout::root::{InlinePlace, Root};

use crate::rig::{
    DEVICE, EXTENT, ME, Rig, config, looked_at, object, objects, placed, put, restored, small,
};
use crate::work::found;

/// A fanout that is never reached: nothing is merged until the test wants it.
fn unmerged() -> Limits {
    Limits {
        fanout: 100,
        ..small()
    }
}

fn flush(rig: &mut Rig) {
    rig.settle();
    assert!(rig.freeze());
    rig.settle();
}

fn ask(rig: &mut Rig, key: &str) -> Output {
    let names = vec![("bucket".to_owned(), key.to_owned())];
    rig.answer(objects(names), None).unwrap()
}

fn says(seq: u64, amended: bool) -> Output {
    Output::Objects(vec![Some(found(seq, amended))])
}

fn amended(key: &str, seq: u64) -> Change {
    Change::Put {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        object: restored(seq),
    }
}

/// Merges all runs into one: a quarter of what there is are deletions of nothing.
fn merge_all(rig: &mut Rig) {
    let mut seq = rig.index.applied().0;
    for n in 0..=rig.index.stats().run_entries {
        seq += 1;
        let (bucket, key) = ("bucket".to_owned(), format!("nothing-{n}"));
        rig.apply(seq, Change::Delete { bucket, key });
    }
    flush(rig);
    let runs = rig.index.stats().runs;
    assert_eq!(runs, 1, "all in one run");
}

#[test]
fn a_value_put_anew_is_the_value_wherever_it_is() {
    // Of the same version in another table, in a newer run, in an older run than some, and merged.
    let placed_at = [2, 3, 7, 8, 12, 13];
    for (n, seq) in placed_at.iter().enumerate() {
        let mut rig = Rig::new(1, unmerged(), 64 << 10);
        for seq in 1..=20 {
            rig.apply(seq, put("bucket", &format!("key-{seq}"), seq));
        }
        let key = format!("key-{seq}");
        let mut steps = vec![
            flush as fn(&mut Rig),
            |rig| {
                for seq in 21..=30 {
                    rig.apply(seq, put("bucket", &format!("other-{seq}"), seq));
                }
            },
            flush,
        ];
        steps.truncate(n % 4);
        steps.into_iter().for_each(|step| step(&mut rig));
        assert_eq!(ask(&mut rig, &key), says(*seq, false));
        let applied = rig.index.applied();
        rig.index.amend(Seq(*seq), amended(&key, *seq)).unwrap();
        assert_eq!(rig.index.applied(), applied);
        assert_eq!(ask(&mut rig, &key), says(*seq, true));
        rig.apply(applied.0 + 1, put("bucket", "more", applied.0 + 1));
        flush(&mut rig);
        assert_eq!(ask(&mut rig, &key), says(*seq, true));
        rig.crash().unwrap();
        assert_eq!(ask(&mut rig, &key), says(*seq, true));
        let (before, count) = (rig.index.stats().runs, rig.index.stats().run_entries);
        let items = looked_at(ME, &rig.index, &rig.device).unwrap().len() as u64;
        merge_all(&mut rig);
        assert_eq!(ask(&mut rig, &key), says(*seq, true));
        let stats = rig.index.stats();
        assert_eq!(stats.run_entries, items, "{before} runs of {count} entries");
        assert_eq!(stats.objects, items);
    }
}

/// Runs are merged as soon as there are so many.
fn merged_by(fanout: usize) -> Limits {
    Limits { fanout, ..small() }
}

#[test]
fn a_snapshot_keeps_one_of_a_version_too() {
    let mut rig = Rig::new(2, merged_by(3), 64 << 10);
    rig.apply(2, put("bucket", "key", 2));
    let snapshot = rig.index.snapshot().unwrap();
    flush(&mut rig);
    rig.index.amend(Seq(2), amended("key", 2)).unwrap();
    flush(&mut rig);
    assert_eq!(rig.index.stats().runs, 2);
    rig.apply(3, put("bucket", "key", 3));
    flush(&mut rig);
    // The newest, and of the one that the snapshot sees the value that was put last.
    let stats = rig.index.stats();
    assert_eq!((stats.runs, stats.run_entries), (1, 2), "{stats:?}");
    let names = objects(vec![("bucket".to_owned(), "key".to_owned())]);
    assert_eq!(rig.answer(names.clone(), Some(snapshot)), Ok(says(2, true)));
    assert_eq!(rig.answer(names, None), Ok(says(3, false)));
}

#[test]
fn what_is_not_the_newest_is_not_put_anew() {
    let mut rig = Rig::new(3, unmerged(), 64 << 10);
    rig.apply(2, put("bucket", "key", 2));
    rig.apply(3, put("bucket", "key", 3));
    rig.index.amend(Seq(2), amended("key", 2)).unwrap();
    assert_eq!(ask(&mut rig, "key"), says(3, false), "newer in the table");
    rig.freeze();
    rig.index.amend(Seq(2), amended("key", 2)).unwrap();
    assert_eq!(
        ask(&mut rig, "key"),
        says(3, false),
        "newer in one that is written out"
    );
    rig.settle();
    // The index cannot know it without a read: but the newest counts, wherever it is.
    rig.index.amend(Seq(2), amended("key", 2)).unwrap();
    assert_eq!(ask(&mut rig, "key"), says(3, false));
    flush(&mut rig);
    rig.cache.clear();
    assert_eq!(ask(&mut rig, "key"), says(3, false));
    assert_eq!(rig.index.stats().runs, 2);
    merge_all(&mut rig);
    assert_eq!(ask(&mut rig, "key"), says(3, false));
    // What has not been applied yet is no version.
    rig.index.amend(Seq(900), amended("ahead", 900)).unwrap();
    assert_eq!(ask(&mut rig, "ahead"), Output::Objects(vec![None]));
}

#[test]
fn without_a_root_it_is_what_it_was() {
    let mut rig = Rig::new(4, unmerged(), 64 << 10);
    rig.apply(2, put("bucket", "key", 2));
    flush(&mut rig);
    rig.index.amend(Seq(2), amended("key", 2)).unwrap();
    rig.crash().unwrap();
    assert_eq!(ask(&mut rig, "key"), says(2, false));
    // Nothing but a value put anew is worth a root as well.
    rig.index.amend(Seq(2), amended("key", 2)).unwrap();
    flush(&mut rig);
    assert_eq!(rig.index.covered(), Seq(2));
    rig.crash().unwrap();
    assert_eq!(ask(&mut rig, "key"), says(2, true));
    assert!(rig.index.stats().embedded >= 700);
}

#[test]
fn the_largest_payloads() {
    let limits = Limits {
        table_bytes: 256 << 10,
        ..small()
    };
    let mut rig = Rig::new(5, limits, 1 << 20);
    let payload = |seq: u64| vec![seq as u8; INLINE_MAX as usize - (seq % 3) as usize];
    for seq in 1..=40u64 {
        let object = Object {
            modified_ms: seq,
            manifest: Manifest::plain(payload(seq).len() as u64, 0, Body::Inline),
            tag: None,
            place: None,
            payload: payload(seq).into(),
        };
        let (bucket, key) = ("bucket".to_owned(), format!("key-{seq}"));
        rig.apply(
            seq,
            Change::Put {
                bucket,
                key,
                object,
            },
        );
    }
    flush(&mut rig);
    rig.crash().unwrap();
    assert_eq!(
        rig.index.stats().embedded,
        (1..=40).map(|seq| payload(seq).len() as u64).sum()
    );
    for seq in 1..=40 {
        let Output::Objects(found) = ask(&mut rig, &format!("key-{seq}")) else {
            panic!("no objects");
        };
        assert_eq!(found[0].as_ref().unwrap().payload, payload(seq));
    }
}

fn pins_of(rig: &Rig) -> Vec<u32> {
    let items = looked_at(ME, &rig.index, &rig.device).unwrap();
    let extents = placed(&items)
        .into_iter()
        .map(|(_, at)| (at / EXTENT) as u32);
    extents.collect::<BTreeSet<u32>>().into_iter().collect()
}

#[test]
fn pins_are_the_extents_of_what_is_kept() {
    let mut rig = Rig::new(6, unmerged(), 64 << 10);
    assert!(rig.index.pins().is_empty());
    for seq in 1..=60 {
        rig.apply(seq, put("bucket", &format!("key-{}", seq % 40), seq));
        if seq % 20 == 0 {
            assert_eq!(rig.index.pins(), rig.told.1, "those of the durable root");
            flush(&mut rig);
        }
    }
    // Superseded places still count, until a merge leaves them out.
    let needed = pins_of(&rig);
    let held = rig.index.pins();
    assert!(needed.iter().all(|extent| held.contains(extent)) && held.len() > needed.len());
    assert_eq!(rig.told.1, held);
    rig.crash().unwrap();
    assert_eq!(rig.index.pins(), held, "found again when it is opened");
    merge_all(&mut rig);
    assert_eq!(rig.index.pins(), needed);
}

#[test]
fn what_only_a_snapshot_sees_is_pinned_as_well() {
    let limits = Limits {
        table_bytes: 12 << 10,
        ..merged_by(2)
    };
    let mut rig = Rig::new(6, limits, 64 << 10);
    for seq in 1..=20 {
        rig.apply(seq, put("bucket", &format!("key-{seq}"), seq));
    }
    flush(&mut rig);
    let needed = pins_of(&rig);
    let snapshot = rig.index.snapshot().unwrap();
    for n in 1..=20 {
        let seq = 20 + n * 5;
        rig.apply(seq, put("bucket", &format!("key-{n}"), seq));
        assert!(object(seq).place.is_none());
    }
    flush(&mut rig);
    let stats = rig.index.stats();
    assert_eq!((stats.runs, stats.run_entries), (1, 40));
    assert!(pins_of(&rig).is_empty());
    assert_eq!(rig.index.pins(), needed);
    rig.index.release(snapshot);
    merge_all(&mut rig);
    assert!(rig.index.pins().is_empty(), "{:?}", rig.index.pins());
}

#[test]
fn a_root_does_not_grow_with_what_is_pinned() {
    let limits = Limits {
        table_bytes: 16 << 20,
        ..small()
    };
    let mut rig = Rig::new(7, limits, 1 << 20);
    for seq in 1..=40_000u64 {
        let object = Object {
            place: Some(InlinePlace {
                term: Term(1),
                at: seq * 3 * EXTENT,
                len: 900,
            }),
            payload: Default::default(),
            ..object(2)
        };
        let (bucket, key) = ("bucket".to_owned(), format!("key-{seq}"));
        rig.apply(
            seq,
            Change::Put {
                bucket,
                key,
                object,
            },
        );
    }
    flush(&mut rig);
    let expected: Vec<u32> = (1..=40_000).map(|seq| seq * 3).collect();
    assert_eq!(rig.index.pins(), expected);
    let (_, root) = &rig.device.roots[&ME];
    assert!(root.len() < 1000, "{} bytes", root.len());
    rig.crash().unwrap();
    assert_eq!(rig.index.pins(), expected);
}

#[test]
fn damaged_pins_open_nothing() {
    let mut rig = Rig::new(8, unmerged(), 0);
    (1..=60).for_each(|seq| rig.apply(seq, put("bucket", &format!("key-{seq}"), seq)));
    flush(&mut rig);
    let (_, bytes) = rig.device.roots[&ME].clone();
    let root = Root::decode(&bytes, DEVICE, config(1, small()).partition).unwrap();
    let run = &root.runs[0];
    assert_eq!(run.pins.pages, 1);
    rig.device
        .rot(&run.chunks[0], run.pins.grain as usize * 4096 + 66);
    assert!(rig.crash().is_err());
}

fn hash(index: &Index) -> u64 {
    let mut hasher = DefaultHasher::new();
    index.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn the_hash_tells_states_apart() {
    // Two of the same history, step by step.
    let mut pair = [1, 2].map(|_| Rig::new(9, small(), 4096));
    let mut seen = BTreeSet::new();
    let mut step = |pair: &mut [Rig; 2], run: &dyn Fn(&mut Rig)| {
        pair.iter_mut().for_each(run);
        let [a, b] = pair.each_ref().map(|rig| hash(&rig.index));
        assert_eq!(a, b);
        seen.insert(a)
    };
    for seq in 1..=200 {
        let new = step(&mut pair, &|rig| {
            rig.apply(seq, put("bucket", &format!("{seq}"), seq))
        });
        assert!(new, "entry {seq}");
        step(&mut pair, &|rig| {
            let _ = rig.step();
        });
    }
    assert!(step(&mut pair, &|rig| {
        let _ = rig.index.snapshot();
    }));
    pair.iter_mut().for_each(Rig::settle);
    let ask = |rig: &mut Rig| {
        let names = vec![("bucket".to_owned(), "17".to_owned())];
        rig.cache.clear();
        drop(rig.ask(objects(names), None));
    };
    assert!(step(&mut pair, &ask), "a question waits");
    assert!(
        step(&mut pair, &|rig| {
            let _ = rig.step();
        }),
        "a page came"
    );
    assert!(
        step(&mut pair, &|rig| {
            let _ = rig.freeze();
        }),
        "a table is written out"
    );
    assert!(step(&mut pair, &|rig| {
        let _ = rig.step();
    }));
    pair.iter_mut().for_each(Rig::settle);
    let amend = |rig: &mut Rig| rig.index.amend(Seq(17), amended("17", 17)).unwrap();
    assert!(step(&mut pair, &amend), "a value was put anew");
    let clear = |rig: &mut Rig| {
        let mut out = Vec::new();
        rig.index.clear(&mut out);
        rig.give(out);
    };
    assert!(step(&mut pair, &clear));
}

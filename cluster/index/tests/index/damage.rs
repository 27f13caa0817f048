//! Rot: what cannot be read is told, by run and page, and never taken for an absence.

use ashlar_cluster_index::{Answer, Event, IndexError, Limits, List, Output, Question};
use ashlar_layout::page::GRAIN;
use ashlar_layout::root::{Chunk, Root};

use crate::rig::{ME, Rig, config, objects, put, small};

const KEYS: u64 = 400;

fn filled(seed: u64) -> Rig {
    let limits = Limits {
        table_bytes: 1 << 20,
        ..small()
    };
    let mut rig = Rig::new(seed, limits, 0);
    let bucket = ashlar_cluster_index::Change::PutBucket {
        bucket: "bucket".to_owned(),
        created_ms: 1,
    };
    rig.apply(1, bucket);
    for n in 0..KEYS {
        rig.apply(n + 2, put("bucket", &format!("some/key-{n:05}"), n + 2));
    }
    rig.freeze();
    rig.settle();
    rig
}

fn root(rig: &Rig) -> Root {
    let config = config(1, small());
    let (_, bytes) = rig.device.roots[&ME].clone();
    Root::decode(&bytes, config.device, config.partition).unwrap()
}

fn lookup(rig: &mut Rig, n: u64) -> Result<Output, IndexError> {
    let key = format!("some/key-{n:05}");
    rig.answer(objects(vec![("bucket".to_owned(), key)]), None)
}

#[test]
fn a_rotten_page_is_named_and_nothing_is_absent() {
    let chunk = root(&filled(1)).runs[0].chunks[0];
    let leaves_end = root(&filled(1)).runs[0].leaves_end as usize;
    assert!(leaves_end > 4);
    for grain in 0..leaves_end {
        let mut rig = filled(1);
        rig.device.rot(&chunk, grain * GRAIN + 777 % GRAIN);
        let mut corrupt = 0;
        for n in 0..KEYS {
            match lookup(&mut rig, n) {
                Ok(Output::Objects(found)) => {
                    assert_eq!(found[0].as_ref().unwrap().meta.version.0, n + 2);
                }
                Err(IndexError::Corrupt { run, grain: at, .. }) => {
                    assert_eq!(run, root(&rig).runs[0].id);
                    assert!((grain as u32).saturating_sub(1) <= at && at <= grain as u32);
                    corrupt += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(corrupt > 0, "grain {grain}");
        assert_eq!(rig.damaged.len(), 1, "it is said once");
        let list = Question::List(List {
            bucket: "bucket".to_owned(),
            max: 1000,
            ..List::default()
        });
        assert!(matches!(
            rig.answer(list, None),
            Err(IndexError::Corrupt { .. })
        ));
    }
}

/// A read of a page of the first run, which is under way.
fn read_under_way(rig: &mut Rig) -> (u64, u64) {
    let names = vec![("bucket".to_owned(), "key-0007".to_owned())];
    let Answer::Pending(question) = rig.ask(objects(names), None) else {
        panic!("nothing is cached");
    };
    let reading = rig.device.reading(ME);
    assert_eq!(reading.len(), 1);
    (question, reading[0].0)
}

fn rot_all(rig: &mut Rig, chunk: &Chunk) {
    let bytes = usize::from(chunk.grains) * GRAIN;
    let all = (0..bytes).step_by(64);
    all.for_each(|byte| rig.device.rot(chunk, byte));
}

fn flushed(rig: &mut Rig, seqs: std::ops::Range<u64>) {
    for seq in seqs {
        rig.apply(seq, put("bucket", &format!("key-{:04}", seq % 60), seq));
    }
    assert!(rig.freeze());
}

#[test]
fn what_was_merged_away_may_rot() {
    let limits = Limits {
        table_bytes: 1 << 20,
        fanout: 2,
        ..small()
    };
    let mut rig = Rig::new(6, limits, 0);
    flushed(&mut rig, 1..61);
    rig.settle();
    let (question, read) = read_under_way(&mut rig);
    // The run is merged into another one while the page is on its way; then it rots.
    let chunk = root(&rig).runs[0].chunks[0];
    flushed(&mut rig, 61..91);
    while rig.index.stats().bytes_merged == 0 {
        match rig.device.complete_but(read) {
            Some((_, event)) => rig.event(event),
            None => rig.event(Event::Turn),
        }
    }
    assert!(
        root(&rig)
            .runs
            .iter()
            .all(|run| !run.chunks.contains(&chunk))
    );
    rot_all(&mut rig, &chunk);
    rig.settle();
    let Some(Ok(Output::Objects(found))) = rig.done.remove(&question) else {
        panic!("it was answered by what the run became");
    };
    let version = found[0].as_ref().unwrap().meta.version.0;
    assert_eq!(version, 7, "as it was when the question was asked");
    assert!(rig.damaged.is_empty());
    rig.device.check_use(ME, &rig.index.live());
    assert_eq!(rig.device.used(), root(&rig).chunks().count());
}

#[test]
fn what_was_cleared_away_may_rot() {
    let limits = Limits {
        table_bytes: 1 << 20,
        fanout: 2,
        ..small()
    };
    let mut rig = Rig::new(7, limits, 0);
    flushed(&mut rig, 1..61);
    rig.settle();
    let chunk = root(&rig).runs[0].chunks[0];
    let (question, _) = read_under_way(&mut rig);
    // And a merge reads it.
    flushed(&mut rig, 61..91);
    while rig.device.reading(ME).len() < 2 {
        let reads: Vec<u64> = rig
            .device
            .reading(ME)
            .iter()
            .map(|(token, _)| *token)
            .collect();
        match rig.device.complete_but(reads[0]) {
            Some((_, event)) => rig.event(event),
            None => rig.event(Event::Turn),
        }
    }
    let mut out = Vec::new();
    rig.index.clear(&mut out);
    rig.give(out);
    rot_all(&mut rig, &chunk);
    rig.settle();
    assert_eq!(rig.done.remove(&question), Some(Err(IndexError::Cleared)));
    assert!(rig.damaged.is_empty(), "{:?}", rig.damaged);
    flushed(&mut rig, 1..61);
    rig.settle();
    assert_eq!(rig.device.used(), root(&rig).chunks().count());
}

#[test]
fn what_is_cleared_is_freed_though_pages_of_it_were_waited_for() {
    let limits = Limits {
        table_bytes: 1 << 20,
        ..small()
    };
    let mut rig = Rig::new(8, limits, 0);
    let key = |n: u64| format!("key-{n:05}");
    (1..2000).for_each(|seq| rig.apply(seq, put("bucket", &key(seq), seq)));
    rig.freeze();
    rig.settle();
    for n in 1..50 {
        let names = vec![("bucket".to_owned(), key(n * 40))];
        let answer = rig.ask(objects(names), None);
        assert!(matches!(answer, Answer::Pending(_)));
    }
    // All want the fence page; and then each its leaf, more than may be read at once.
    rig.step();
    assert_eq!(rig.device.reading(ME).len(), small().reads);
    let mut out = Vec::new();
    rig.index.clear(&mut out);
    rig.give(out);
    assert_eq!(rig.done.len(), 49);
    flushed(&mut rig, 1..61);
    rig.settle();
    assert_eq!(rig.device.used(), root(&rig).chunks().count());
}

#[test]
fn a_damaged_filter_costs_reads_only() {
    let mut rig = filled(2);
    let run = root(&rig).runs[0].clone();
    rig.device
        .rot(&run.chunks[0], run.filter.grain as usize * GRAIN + 99);
    rig.crash().unwrap();
    for n in 0..KEYS {
        assert!(matches!(lookup(&mut rig, n), Ok(Output::Objects(found)) if found[0].is_some()));
    }
    let absent = lookup(&mut rig, KEYS + 5);
    assert!(matches!(absent, Ok(Output::Objects(found)) if found[0].is_none()));
}

#[test]
fn damaged_fences_or_a_damaged_root_open_nothing() {
    let mut rig = filled(3);
    let run = root(&rig).runs[0].clone();
    rig.device
        .rot(&run.chunks[0], run.top.grain as usize * GRAIN + 99);
    assert!(
        matches!(rig.crash(), Err(IndexError::Corrupt { grain, .. }) if grain == run.top.grain)
    );

    let mut rig = filled(4);
    let (generation, bytes) = rig.device.roots[&ME].clone();
    let mut bytes = bytes.to_vec();
    bytes[70] ^= 1;
    rig.device.roots.insert(ME, (generation, bytes.into()));
    assert!(matches!(rig.crash(), Err(IndexError::Root(_))));
}

#[test]
fn a_merge_that_meets_rot_changes_nothing() {
    let mut rig = Rig::new(5, small(), 0);
    let mut seq = 0;
    let mut round = |rig: &mut Rig| {
        for n in 0..60 {
            seq += 1;
            rig.apply(seq, put("bucket", &format!("key-{n:04}"), seq));
        }
        rig.freeze();
        rig.settle();
    };
    round(&mut rig);
    let chunk: Chunk = root(&rig).runs[0].chunks[0];
    rig.device.rot(&chunk, 500);
    let used = |rig: &Rig| rig.device.used();
    for _ in 0..6 {
        round(&mut rig);
    }
    let runs = rig.index.stats().runs;
    assert!(runs >= 3, "the damaged run was not merged away: {runs}");
    assert!(matches!(
        rig.damaged[0],
        IndexError::Corrupt { grain: 0, .. }
    ));
    rig.device.check_use(ME, &rig.index.live());
    assert!(used(&rig) >= runs);
}

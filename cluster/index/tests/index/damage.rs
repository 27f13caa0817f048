//! Rot: what cannot be read is told, by run and page, and never taken for an absence.

use ashlar_cluster_index::{IndexError, Limits, List, Output, Question};
use ashlar_layout::page::GRAIN;
use ashlar_layout::root::{Chunk, Root};

use crate::rig::{Rig, config, put, small};

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
    let (_, bytes) = rig.device.root.clone().unwrap();
    Root::decode(&bytes, config.device, config.partition).unwrap()
}

fn lookup(rig: &mut Rig, n: u64) -> Result<Output, IndexError> {
    let key = format!("some/key-{n:05}");
    rig.answer(Question::Objects(vec![("bucket".to_owned(), key)]), None)
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
    let (generation, bytes) = rig.device.root.clone().unwrap();
    let mut bytes = bytes.to_vec();
    bytes[70] ^= 1;
    rig.device.root = Some((generation, bytes.into()));
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
    rig.device.check_use(&rig.index.live());
    assert!(used(&rig) >= runs);
}

//! What it costs: pages for a listing, memory for a key, bytes written for a byte; and what is bounded.

use ashlar_cluster_index::{Answer, Change, Limits, List, Object, Output, Question};
use ashlar_layout::ids::{PgId, StripeId};
use ashlar_layout::manifest::{Body, Manifest, Stripe};

use crate::rig::{Rig, put, small};

fn limits() -> Limits {
    Limits {
        table_bytes: 256 << 10,
        fanout: 4,
        step: 512,
        span_bytes: 128 << 10,
        reads: 64,
        ..small()
    }
}

/// `folders` folders of `each` keys.
fn filled(folders: u64, each: u64) -> Rig {
    let mut rig = Rig::new(1, limits(), 4 << 20);
    let bucket = Change::PutBucket {
        bucket: "bucket".to_owned(),
        created_ms: 1,
    };
    rig.apply(1, bucket);
    let mut seq = 1;
    for n in 0..folders * each {
        seq += 1;
        // Scattered, so that each run reaches over all folders.
        let at = n * 7919 % (folders * each);
        let key = format!("folder-{:04}/object-{:06}", at / each, at % each);
        rig.apply(seq, put("bucket", &key, seq));
    }
    rig.freeze();
    rig.settle();
    rig
}

fn list(rig: &mut Rig, delimiter: &str, prefix: &str, max: u32) -> (usize, u64) {
    rig.cache.clear();
    let before = rig.index.stats().pages_read;
    let question = Question::List(List {
        bucket: "bucket".to_owned(),
        delimiter: delimiter.to_owned(),
        prefix: prefix.to_owned(),
        max,
        ..List::default()
    });
    let Ok(Output::List(Some(page))) = rig.answer(question, None) else {
        panic!("no page");
    };
    let items = page.objects.len() + page.prefixes.len();
    (items, rig.index.stats().pages_read - before)
}

#[test]
fn a_page_costs_what_is_in_it_and_not_what_is_in_the_bucket() {
    let mut pages = Vec::new();
    for each in [50, 2000] {
        let mut rig = filled(30, each);
        let runs = rig.index.stats().runs as u64;
        let (items, rolled) = list(&mut rig, "/", "", 1000);
        assert_eq!(items, 30);
        let (items, plain) = list(&mut rig, "", "folder-0007/", 40);
        assert_eq!(items, 40);
        // Of each run: a fence page and a leaf for each seek.
        assert!(rolled <= 2 * 31 * runs, "{rolled} pages, {runs} runs");
        assert!(plain <= 4 * runs + 2, "{plain} pages, {runs} runs");
        pages.push((rolled, plain, runs));
    }
    let per_run = |at: usize| pages[at].0 as f64 / pages[at].2 as f64;
    assert!(per_run(1) < 70.0, "{pages:?}");
}

#[test]
fn memory_and_writing_are_bounded() {
    let keys = 60_000u64;
    let rig = filled(60, keys / 60);
    let stats = rig.index.stats();
    let memory = stats.run_memory as f64 / stats.run_entries as f64;
    assert!(memory < 1.5, "{memory} bytes a key: {stats:?}");
    let written = (stats.bytes_flushed + stats.bytes_merged) as f64 / stats.run_bytes as f64;
    let tables = stats.bytes_in as f64 / (256u64 << 10) as f64;
    let levels = 1.0 + (tables.max(4.0)).log(4.0).ceil();
    assert!(written <= levels + 0.5, "{written} of {levels}: {stats:?}");
}

#[test]
fn deleted_things_go_in_the_end() {
    let mut rig = filled(10, 1000);
    let full = rig.index.stats().run_bytes;
    let mut seq = rig.index.applied().0;
    for n in 0..10_000u64 {
        seq += 1;
        let key = format!("folder-{:04}/object-{:06}", n / 1000, n % 1000);
        let bucket = "bucket".to_owned();
        rig.apply(seq, Change::Delete { bucket, key });
    }
    rig.settle();
    assert!(rig.freeze());
    rig.settle();
    let stats = rig.index.stats();
    assert!(stats.run_bytes < full / 10, "{full}, then {stats:?}");
    assert!(stats.run_entries < 10, "{stats:?}");
    let empty = rig.answer(Question::Empty("bucket".to_owned()), None);
    assert_eq!(empty, Ok(Output::Empty(true)));
}

#[test]
fn questions_for_one_page_share_one_read() {
    let mut rig = filled(4, 200);
    rig.cache.clear();
    let before = rig.index.stats().pages_read;
    let name = || ("bucket".to_owned(), "folder-0001/object-000007".to_owned());
    let pending: Vec<u64> = (0..50)
        .map(|_| match rig.ask(Question::Objects(vec![name()]), None) {
            Answer::Pending(id) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    rig.settle();
    assert!(pending.iter().all(|id| rig.done.contains_key(id)));
    let reads = rig.index.stats().pages_read - before;
    assert!(reads <= 2 * rig.index.stats().runs as u64, "{reads} reads");
}

#[test]
fn what_waits_is_bounded() {
    let mut rig = filled(4, 200);
    rig.cache.clear();
    let name = || ("bucket".to_owned(), "folder-0001/object-000007".to_owned());
    let answers: Vec<Answer> = (0..80)
        .map(|_| rig.ask(Question::Objects(vec![name()]), None))
        .collect();
    assert_eq!(
        answers.iter().filter(|a| **a == Answer::Busy).count(),
        80 - 64
    );
    rig.settle();
    // Changes: a device that does nothing stops them, and not memory.
    let mut seq = rig.index.applied().0;
    let full = loop {
        seq += 1;
        let key = format!("new-{seq}");
        match rig
            .index
            .apply(ashlar_layout::ids::Seq(seq), put("bucket", &key, seq))
        {
            Ok(()) if rig.index.wants_freeze() => drop(rig.freeze()),
            Ok(()) => {}
            Err(full) => break full,
        }
    };
    assert!(full.waiting <= 4 * (256 << 10) + 4096, "{full}");
    let kept: Vec<_> = (0..10).map_while(|_| rig.index.snapshot()).collect();
    assert_eq!(kept.len(), 8);
}

/// A manifest of `stripes` stripes of 64 shards each: up to 74 KiB.
fn large(stripes: u64) -> Manifest {
    let stripe = |attempt| Stripe {
        id: StripeId { writer: 5, attempt },
        pg: PgId(1),
        k: 48,
        m: 16,
        data_len: 4096,
        shard_crcs: (0..64).map(|i| attempt as u32 * 64 + i).collect(),
    };
    Manifest {
        size: stripes * 4096,
        crc: 1,
        body: Body::Stripes((0..stripes).map(stripe).collect()),
    }
}

#[test]
fn entries_larger_than_a_page_and_long_keys_that_share_almost_all() {
    let mut rig = Rig::new(3, limits(), 1 << 20);
    let key = |n: u64| format!("{}/{n:06}", "x".repeat(1000));
    let mut seq = 0;
    for n in 0..1200u64 {
        seq += 1;
        let n = n * 7919 % 1200;
        let manifest = match n % 50 {
            0 => large(256),
            1 => large(20),
            _ => large(1),
        };
        let put = Change::Put {
            bucket: "bucket".to_owned(),
            key: key(n),
            object: Object {
                modified_ms: n,
                manifest,
                place: None,
            },
        };
        rig.apply(seq, put);
    }
    rig.settle();
    assert!(rig.freeze());
    rig.settle();
    assert!(rig.index.stats().bytes_merged > 0);
    rig.crash().unwrap();
    let stats = rig.index.stats();
    assert_eq!(stats.run_entries, 1200);
    assert!(
        stats.run_memory < 1200 * 40,
        "fences in memory are few: {stats:?}"
    );
    for n in 0..1200 {
        let names = vec![("bucket".to_owned(), key(n))];
        let Ok(Output::Objects(found)) = rig.answer(Question::Objects(names), None) else {
            panic!("no answer");
        };
        let meta = &found[0].as_ref().unwrap().meta;
        let stripes = match n % 50 {
            0 => 256,
            1 => 20,
            _ => 1,
        };
        assert_eq!((meta.modified_ms, &meta.manifest), (n, &large(stripes)));
    }
    let absent = vec![("bucket".to_owned(), key(1200))];
    let absent = rig.answer(Question::Objects(absent), None);
    assert_eq!(absent, Ok(Output::Objects(vec![None])));
}
